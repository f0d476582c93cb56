"""An integer times 1.0 is a floating-point number."""

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
  graph(%x : i64[4]) {
    %y = aten.mul.Scalar(%x) {other=1.0} : f32[4]
    return %y
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
