"""A residual that is broadcast to the sum is left alone."""

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.fuse.conv import ConvBNAddActPattern

SUBJECT = (ConvBNAddActPattern,)
PROPERTIES = Properties()
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  parameter %w : f32[3, 3, 1, 1] requires_grad
  argument "x" = input 0
  argument "r" = input 1
  result = output 0
  graph(%x : f32[2, 3, 4, 4], %r : f32[1, 4, 4]) {
    %conv = aten.conv2d(%x, %w, None) : f32[2, 3, 4, 4]
    %add = aten.add.Tensor(%r, %conv) : f32[2, 3, 4, 4]
    return %add
  }
}
"""
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
