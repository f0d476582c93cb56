"""A softmax over the queries is no attention, although all sizes are equal."""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.fuse.attention import ScaledDotProductAttentionPattern

SUBJECT = (ScaledDotProductAttentionPattern,)
PROPERTIES = Properties()
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  argument "q" = input 0
  argument "k" = input 1
  argument "v" = input 2
  result = output 0
  graph(%q : f32[2, 3, 3, 3], %k : f32[2, 3, 3, 3], %v : f32[2, 3, 3, 3]) {
    %t = aten.permute(%k) {dims=[0, 1, 3, 2]} : f32[2, 3, 3, 3]
    %scores = aten.matmul(%q, %t) : f32[2, 3, 3, 3]
    %weights = aten.softmax.int(%scores) {dim=2} : f32[2, 3, 3, 3]
    %out = aten.matmul(%weights, %v) : f32[2, 3, 3, 3]
    return %out
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
