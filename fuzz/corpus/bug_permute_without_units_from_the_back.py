"""A permute that counts from the back lost its dimensions.

PermuteWithoutUnits looked negative dims up among dimensions counted from the front and built a permute that is too
short. Found by `no error` on its instances after 8 programs; fixed in 19e2f96.
"""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.canonicalize.permute import PermuteWithoutUnits

SUBJECT = (PermuteWithoutUnits,)
PROPERTIES = Properties(exact=True)
FIRES = True
CASE = Case.seeded(
    """
program "case" {
  argument "x" = input 0
  result = output 0
  graph(%x : f32[6]) {
    %inner = aten.reshape(%x) {shape=[2, 1, 3]} : f32[2, 1, 3]
    %permute = aten.permute(%inner) {dims=[-1, 1, 0]} : f32[3, 1, 2]
    %reshape = aten.reshape(%permute) {shape=[6]} : f32[6]
    return %reshape
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
