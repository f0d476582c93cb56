"""A folded constant of one element had stride 0, and its bytes could not be looked at.

FoldConstants. Found by `no error` in a campaign of inflated programs after 166: `contiguous` leaves one element as it is.
"""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.fold.constants import FoldConstants

SUBJECT = FoldConstants()
PROPERTIES = Properties(exact=True)
FIRES = True
CASE = Case.seeded(
    """
program "case" {
  constant %one : f32[]
  argument "x" = input 0
  result = output 0
  graph(%x : f32[1]) {
    %expand = aten.expand(%one) {size=[1]} : f32[1]
    %add = aten.add.Tensor(%x, %expand) : f32[1]
    return %add
  }
}
""",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
