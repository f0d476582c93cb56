"""A cast that is asked for a copy makes one each time; two of them became one tensor.

Idempotent. Found by `sharing` in a campaign after 107 programs.
"""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.canonicalize.identity import Idempotent

SUBJECT = (Idempotent,)
PROPERTIES = Properties(exact=True)
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  out_spec (*, *)
  argument "x" = input 0
  result = output 0
  result = output 1
  graph(%x : f32[3]) {
    %to = aten.to.dtype(%x) {dtype=torch.float32, copy=True} : f32[3]
    %to_1 = aten.to.dtype(%to) {dtype=torch.float32, copy=True} : f32[3]
    return %to, %to_1
  }
}
""",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
