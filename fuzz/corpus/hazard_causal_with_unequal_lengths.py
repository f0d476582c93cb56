"""Causal attention of 2 queries over 4 keys lets the first query see the first key only."""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.fuse.attention import ScaledDotProductAttentionPattern

SUBJECT = (ScaledDotProductAttentionPattern,)
PROPERTIES = Properties()
FIRES = True
CASE = Case.seeded(
    """
program "case" {
  argument "q" = input 0
  argument "k" = input 1
  argument "v" = input 2
  result = output 0
  graph(%q : f32[1, 2, 2, 3], %k : f32[1, 2, 4, 3], %v : f32[1, 2, 4, 3]) {
    %out = aten.scaled_dot_product_attention(%q, %k, %v, None) {is_causal=True} : f32[1, 2, 2, 3]
    return %out
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
