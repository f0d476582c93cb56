"""Two random calls are two values, and one that is not used still draws."""

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
    %a = aten.rand_like(%x) : f32[4]
    %b = aten.rand_like(%x) : f32[4]
    %unused = aten.rand_like(%x) : f32[4]
    %c = aten.sub.Tensor(%a, %b) : f32[4]
    return %c
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
