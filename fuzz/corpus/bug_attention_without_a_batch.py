"""An nn.MultiheadAttention without a batch became attention over rank 3, where the module makes a batch of one.

DecomposeMultiheadAttentionPattern. The kernels for rank 3 and rank 4 put NaN in other places. Found by `values` on its
instances after 460 programs, in a run of the mutants; fixed where the corpus has this file first.
"""

import torch

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.convert.attention import DecomposeMultiheadAttentionPattern

SUBJECT = (DecomposeMultiheadAttentionPattern,)
PROPERTIES = Properties(strides=False)
FIRES = True
CASE = Case(
    program="""
program "case" {
  buffer %w0 : f32[3]
  parameter %w1 : f32[1, 1] requires_grad
  parameter %w2 : f32[1] requires_grad
  argument "x0" = input 0
  result = output 0
  graph(%x0 : f32[3, 1]) {
    %relu = aten.relu(%x0) : f32[3, 1]
    %attention, %weights = nn.multihead_attention(%relu, %relu, %relu, %x0, %w0, %w1, %w2, None, None, None, None, None, None, None) {num_heads=1, embed_dim=1, batch_first=True, need_weights=False} : f32[3, 1], opaque
    return %attention
  }
}
""",
    inputs=(torch.tensor([[float("-inf")], [0.4275], [-1.7370]]),),
    weights={
        "w0": torch.tensor([1.5410, -0.2934, -2.1788]),
        "w1": torch.tensor([[0.6614]]),
        "w2": torch.tensor([0.3923]),
    },
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
