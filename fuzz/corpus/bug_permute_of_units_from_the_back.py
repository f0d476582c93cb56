"""A permute that counts from the back was taken for one that moves nothing.

ReshapeOfUnitPermute compared dims as they are written with dimensions counted from the front. Found by `values` on
its instances after 8 programs; fixed in 19e2f96.
"""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.canonicalize.permute import ReshapeOfUnitPermute

SUBJECT = (ReshapeOfUnitPermute,)
PROPERTIES = Properties(exact=True)
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  argument "x" = input 0
  result = output 0
  graph(%x : f32[2, 3]) {
    %permute = aten.permute(%x) {dims=[-1, -2]} : f32[3, 2]
    %reshape = aten.reshape(%permute) {shape=[6]} : f32[6]
    return %reshape
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
