"""Behind a linear on (N, C, C), batch norm normalizes dimension 1, not the linear's channels; all sizes are equal."""

from compiler.pipeline import parse_pipeline
from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check

SUBJECT = parse_pipeline("fold-batch-norm")
PROPERTIES = Properties()
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  parameter %w : f32[3, 3] requires_grad
  parameter %gamma : f32[3] requires_grad
  parameter %beta : f32[3] requires_grad
  buffer %mean : f32[3]
  buffer %var : f32[3]
  argument "x" = input 0
  result = output 0
  graph(%x : f32[3, 3, 3]) {
    %linear = aten.linear(%x, %w, None) : f32[3, 3, 3]
    %bn = aten.batch_norm(%linear, %gamma, %beta, %mean, %var) {training=False, momentum=0.1, eps=1e-05, cudnn_enabled=False} : f32[3, 3, 3]
    return %bn
  }
}
""",
    bounds={"var": (0.5, 2.0)},
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
