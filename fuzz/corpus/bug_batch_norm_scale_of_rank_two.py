"""Batch norm takes a scale of any rank with a number for each channel; folded, it made a bias of rank 2.

FoldBatchNormPattern. Found by `verifier` in a campaign (statistics of rank 4, which do not run) after 400 programs.
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
  parameter %w : f32[3, 3, 1, 1] requires_grad
  parameter %gamma : f32[1, 3] requires_grad
  buffer %mean : f32[3]
  buffer %var : f32[3]
  argument "x" = input 0
  result = output 0
  graph(%x : f32[2, 3, 4, 4]) {
    %conv = aten.conv2d(%x, %w, None) : f32[2, 3, 4, 4]
    %bn = aten.batch_norm(%conv, %gamma, None, %mean, %var) {training=False, momentum=0.1, eps=1e-05, cudnn_enabled=False} : f32[2, 3, 4, 4]
    return %bn
  }
}
""",
    bounds={"var": (0.5, 2.0)},
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
