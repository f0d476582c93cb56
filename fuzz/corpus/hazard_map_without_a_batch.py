"""(C, H, W) flattened from its first dimension on is no batch of pooled maps."""

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
  parameter %w : f32[2, 1] requires_grad
  argument "x" = input 0
  result = output 0
  graph(%x : f32[3, 1, 1]) {
    %flat = aten.flatten.using_ints(%x) {start_dim=1} : f32[3, 1]
    %linear = aten.linear(%flat, %w, None) : f32[3, 2]
    return %linear
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
