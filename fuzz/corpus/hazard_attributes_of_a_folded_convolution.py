"""Stride, padding, dilation, groups and a large eps all count when batch norm is folded."""

from compiler.pipeline import parse_pipeline
from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check

SUBJECT = parse_pipeline("fold-batch-norm")
PROPERTIES = Properties(modes=False)
FIRES = True
CASE = Case.seeded(
    """
program "case" {
  parameter %w : f32[3, 1, 3, 3] requires_grad
  parameter %gamma : f32[3] requires_grad
  parameter %beta : f32[3] requires_grad
  buffer %mean : f32[3]
  buffer %var : f32[3]
  argument "x" = input 0
  result = output 0
  graph(%x : f32[2, 3, 4, 4]) {
    %conv = aten.conv2d(%x, %w, None) {stride=[2, 1], padding=[2, 1], dilation=[2, 1], groups=3} : f32[2, 3, 2, 4]
    %bn = aten.batch_norm(%conv, %gamma, %beta, %mean, %var) {training=False, momentum=0.1, eps=0.5, cudnn_enabled=False} : f32[2, 3, 2, 4]
    return %bn
  }
}
""",
    bounds={"var": (0.5, 2.0)},
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
