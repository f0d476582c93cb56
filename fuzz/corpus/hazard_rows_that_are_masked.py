"""A row of which everything is masked gives NaN in the written-out attention, and must in what replaces it."""

import torch

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
  argument "mask" = input 3
  result = output 0
  graph(%q : f32[1, 2, 3, 3], %k : f32[1, 2, 3, 3], %v : f32[1, 2, 3, 3], %mask : bool[3, 3]) {
    %t = aten.permute(%k) {dims=[0, 1, 3, 2]} : f32[1, 2, 3, 3]
    %scores = aten.matmul(%q, %t) : f32[1, 2, 3, 3]
    %masked = aten.masked_fill.Scalar(%scores, %mask) {value=-inf} : f32[1, 2, 3, 3]
    %weights = aten.softmax.int(%masked) {dim=3} : f32[1, 2, 3, 3]
    %out = aten.matmul(%weights, %v) : f32[1, 2, 3, 3]
    return %out
  }
}
""",
    values={"mask": torch.tensor([[True, True, True], [False, True, False], [False, False, False]])},
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
