"""A batch norm in training whose result nobody uses still writes its statistics."""

from compiler.pipeline import parse_pipeline
from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check

SUBJECT = parse_pipeline("canonicalize")
PROPERTIES = Properties(exact=True)
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  parameter %gamma : f32[3] requires_grad
  parameter %beta : f32[3] requires_grad
  buffer %mean : f32[3]
  buffer %var : f32[3]
  argument "x" = input 0
  result = output 0
  graph(%x : f32[2, 3, 4, 4]) {
    %bn = aten.batch_norm(%x, %gamma, %beta, %mean, %var) {training=True, momentum=0.1, eps=1e-05, cudnn_enabled=False} : f32[2, 3, 4, 4]
    %y = aten.neg(%x) : f32[2, 3, 4, 4]
    return %y
  }
}
""",
    bounds={"var": (0.5, 2.0)},
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
