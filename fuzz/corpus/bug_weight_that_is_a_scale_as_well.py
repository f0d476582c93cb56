"""A layer's weight of shape (channels, 1) that is the batch norm's bias as well passed for one number for each channel.

FoldBatchNormPattern. Found by `verifier` when the mutants were run, after 339 programs; where there are as many rows as
channels, the numbers were wrong.
"""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.fold.batch_norm import FoldBatchNormPattern

SUBJECT = (FoldBatchNormPattern,)
PROPERTIES = Properties()
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  parameter %w : f32[2, 1] requires_grad
  parameter %b : f32[2] requires_grad
  buffer %mean : f32[2]
  buffer %var : f32[2]
  argument "x" = input 0
  result = output 0
  graph(%x : f32[2, 1]) {
    %linear = aten.linear(%x, %w, %b) : f32[2, 2]
    %bn = aten.batch_norm(%linear, None, %w, %mean, %var) {training=False, momentum=0.1, eps=1e-05, cudnn_enabled=False} : f32[2, 2]
    return %bn
  }
}
""",
    bounds={"var": (0.5, 2.0)},
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
