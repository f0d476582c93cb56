"""A linear whose bias has rows became a convolution that does not exist.

FlattenLinearToConv1x1Pattern. Found by `no error` on its instances after 313 programs; fixed in 5ed8977.
"""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.convert.classifier import FlattenLinearToConv1x1Pattern

SUBJECT = (FlattenLinearToConv1x1Pattern,)
PROPERTIES = Properties()
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  parameter %w : f32[2, 3] requires_grad
  parameter %b : f32[4, 2] requires_grad
  argument "x" = input 0
  result = output 0
  graph(%x : f32[4, 3, 1, 1]) {
    %flat = aten.flatten.using_ints(%x) {start_dim=1} : f32[4, 3]
    %linear = aten.linear(%flat, %w, %b) : f32[4, 2]
    return %linear
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
