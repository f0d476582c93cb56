"""Two results shared memory: of a channels_last map, a pool has strides that a conversion to channels_last keeps as they are.

SpatialMeanToPool. Found by `sharing`, with a mutant of the rule, after 1,640 programs; they were the strides of
dimensions of size 1.
"""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.canonicalize.spelling import SpatialMeanToPool

SUBJECT = (SpatialMeanToPool,)
PROPERTIES = Properties(exact=True)
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  out_spec (*, *)
  argument "x" = input 0
  result = output 0
  result = output 1
  graph(%x : f32[2, 2, 3, 3]) {
    %mean = aten.mean.dim(%x) {dim=[3, 2], keepdim=True} : f32[2, 2, 1, 1]
    %more = aten.add.Scalar(%mean) {other=1} : f32[2, 2, 1, 1]
    %to = aten.to.dtype(%more) {dtype=torch.float32, memory_format=torch.channels_last} : f32[2, 2, 1, 1]
    return %more, %to
  }
}
""",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
