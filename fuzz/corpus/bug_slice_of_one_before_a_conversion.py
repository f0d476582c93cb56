"""Two results shared memory: without a slice in steps of 2 of a dimension of size 1, a conversion to channels_last did not copy.

NoExpand. Looked for after the like was found in SpatialMeanToPool (bug_mean_before_a_conversion).
"""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.canonicalize.identity import NoExpand

SUBJECT = (NoExpand,)
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
    %pool = aten.adaptive_avg_pool2d(%x) {output_size=[1, 1]} : f32[2, 2, 1, 1]
    %slice = aten.slice.Tensor(%pool) {dim=3, start=0, end=9, step=2} : f32[2, 2, 1, 1]
    %more = aten.add.Scalar(%slice) {other=1} : f32[2, 2, 1, 1]
    %to = aten.to.dtype(%more) {dtype=torch.float32, memory_format=torch.channels_last} : f32[2, 2, 1, 1]
    return %more, %to
  }
}
""",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
