"""x * 0 keeps NaN and the sign of zero."""

import torch

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
  argument "x" = input 0
  result = output 0
  graph(%x : f32[4]) {
    %y = aten.mul.Scalar(%x) {other=0} : f32[4]
    return %y
  }
}
""",
    values={"x": torch.tensor([-1.0, float("inf"), float("nan"), 1.0])},
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
