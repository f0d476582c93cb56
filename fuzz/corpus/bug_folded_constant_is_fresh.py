"""`pad` without padding makes a new tensor for each call; folded, it was the constant itself.

FoldConstants trusted that an operator which may return its operand does. Found by `sharing` on whole programs after
982 programs.
"""

from compiler.pipeline import parse_pipeline
from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check

SUBJECT = parse_pipeline("fold-constants")
PROPERTIES = Properties(exact=True)
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  constant %c : f32[2]
  out_spec (*, *)
  argument "x" = input 0
  result = output 0
  result = output 1
  graph(%x : f32[2]) {
    %pad = aten.pad(%c) {pad=[], value=0.5} : f32[2]
    %neg = aten.neg(%x) : f32[2]
    return %neg, %pad
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
