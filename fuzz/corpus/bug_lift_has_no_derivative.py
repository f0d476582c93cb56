"""`lift_fresh` cuts the gradient; taken for an alias it let one through.

NoAlias. Found by `gradients` on its instances after 69 programs; fixed in 19e2f96.
"""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.canonicalize.identity import NoAlias, NoDetach

SUBJECT = (NoAlias, NoDetach)
PROPERTIES = Properties(exact=True)
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  out_spec (*, *)
  argument "x" = input 0
  result = output 0
  result = output 1
  graph(%x : f32[2, 2]) {
    %sin = aten.sin(%x) : f32[2, 2]
    %lift = aten.lift_fresh(%x) : f32[2, 2]
    %cos = aten.cos(%lift) : f32[2, 2]
    return %sin, %cos
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
