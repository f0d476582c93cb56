"""Without the pool, a view met the strides of a permuted map, and raised.

RemoveIdentityAdaptiveAvgPoolPattern. Found by `it still runs` in a campaign, once in some 4,000 programs of the rule.
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
  graph(%x : f32[2, 2, 2]) {
    %pool = aten.adaptive_avg_pool2d(%x) {output_size=[2, 2]} : f32[2, 2, 2]
    %neg = aten.neg(%pool) : f32[2, 2, 2]
    %view = aten.view(%neg) {size=[2, 4]} : f32[2, 4]
    return %view
  }
}
""",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
