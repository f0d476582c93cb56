"""Two dropouts of one value drop different elements."""

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
  graph(%x : f32[8]) {
    %a = aten.dropout(%x) {p=0.5, train=True} : f32[8]
    %b = aten.dropout(%x) {p=0.5, train=True} : f32[8]
    %c = aten.sub.Tensor(%a, %b) : f32[8]
    return %c
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
