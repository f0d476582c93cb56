"""clamp(max=-1) and then clamp(min=1) is 1 everywhere, whatever a single clamp with both bounds would give."""

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
  graph(%x : f32[2, 3]) {
    %low = aten.clamp(%x) {min=None, max=-1} : f32[2, 3]
    %high = aten.clamp(%low) {min=1, max=None} : f32[2, 3]
    return %high
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
