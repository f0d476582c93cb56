"""Three equal activations in a row: overlapping matches."""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.canonicalize.identity import Idempotent

SUBJECT = (Idempotent,)
PROPERTIES = Properties(exact=True, idempotent=True)
FIRES = True
CASE = Case.seeded(
    """
program "case" {
  argument "x" = input 0
  result = output 0
  graph(%x : f32[2, 3]) {
    %a = aten.relu(%x) : f32[2, 3]
    %b = aten.relu(%a) : f32[2, 3]
    %c = aten.relu(%b) : f32[2, 3]
    return %c
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
