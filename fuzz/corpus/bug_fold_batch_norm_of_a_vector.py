"""A linear by a vector gives rows without channels; the check asked their dimension 1 for its size.

FoldBatchNormPattern. Found by `no error` in a campaign of 16,704 programs; batch norm takes such rows where there are none.
"""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.fold.batch_norm import FoldBatchNormPattern

SUBJECT = (FoldBatchNormPattern,)
PROPERTIES = Properties(strides=False, modes=False)
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  parameter %w : f32[2] requires_grad
  buffer %mean : f32[2]
  buffer %var : f32[2]
  argument "x" = input 0
  result = output 0
  graph(%x : f32[0, 2]) {
    %linear = aten.linear(%x, %w, None) : f32[0]
    %bn = aten.batch_norm(%linear, None, None, %mean, %var) {training=False, momentum=0.1, eps=1e-05, cudnn_enabled=False} : f32[0]
    return %bn
  }
}
""",
    bounds={"var": (0.5, 2.0)},
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
