"""-0.0 + 0 is 0.0: the addition is no identity of floating-point numbers."""

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
    %y = aten.add.Scalar(%x) {other=0} : f32[4]
    %z = aten.neg(%y) : f32[4]
    return %z
  }
}
""",
    values={"x": torch.tensor([-0.0, 0.0, float("nan"), 1.0])},
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
