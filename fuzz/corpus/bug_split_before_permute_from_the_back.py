"""A permute that counts from the back was sorted as if it counted from the front.

SplitBeforePermute. Found by `values` on its instances after 38 programs; fixed in 19e2f96.
"""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.canonicalize.permute import SplitBeforePermute

SUBJECT = (SplitBeforePermute,)
PROPERTIES = Properties(exact=True)
FIRES = True
CASE = Case.seeded(
    """
program "case" {
  argument "x" = input 0
  result = output 0
  graph(%x : f32[2, 2]) {
    %inner = aten.reshape(%x) {shape=[2, 2]} : f32[2, 2]
    %permute = aten.permute(%inner) {dims=[0, -1]} : f32[2, 2]
    %reshape = aten.reshape(%permute) {shape=[2, 2]} : f32[2, 2]
    return %reshape
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
