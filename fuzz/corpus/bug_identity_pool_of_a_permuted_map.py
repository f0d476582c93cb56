"""Without the pool, a result has the strides of the permuted map, which the pool would have made contiguous.

RemoveIdentityAdaptiveAvgPoolPattern. Found by `strides` once in 1,500 whole programs, and not again in 9,000 of
later generators.
"""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.convert.pooling import RemoveIdentityAdaptiveAvgPoolPattern

SUBJECT = (RemoveIdentityAdaptiveAvgPoolPattern,)
PROPERTIES = Properties()
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  argument "x" = input 0
  result = output 0
  graph(%x : f32[2, 5, 4, 3]) {
    %permute = aten.permute(%x) {dims=[0, 3, 2, 1]} : f32[2, 3, 4, 5]
    %relu = aten.relu(%permute) : f32[2, 3, 4, 5]
    %pool = aten.adaptive_avg_pool2d(%relu) {output_size=[4, 5]} : f32[2, 3, 4, 5]
    return %pool
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
