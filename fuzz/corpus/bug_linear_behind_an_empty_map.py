"""A linear takes no features from a map without rows; a convolution refuses such a map, and the rewrite raised.

FlattenLinearToConvPattern. Found by `no error` when the mutants were run, after 948 programs.
"""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.convert.classifier import FlattenLinearToConvPattern

SUBJECT = (FlattenLinearToConvPattern,)
PROPERTIES = Properties()
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  buffer %w : f32[1, 0]
  argument "x" = input 0
  result = output 0
  graph(%x : f32[2, 2, 0, 6]) {
    %flatten = aten.flatten.using_ints(%x) {start_dim=1} : f32[2, 0]
    %linear = aten.linear(%flatten, %w, None) : f32[2, 1]
    return %linear
  }
}
""",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
