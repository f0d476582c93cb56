"""A value whose shape alone was asked for passed for one that training writes: the evaluator copied it, and an input that
is an output was another tensor.

The evaluator, with SpellReshape. Found by `sharing` in training mode in a campaign, once in 165,776 programs.
"""

import torch

from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check
from passes.canonicalize.reshape import SpellReshape

SUBJECT = (SpellReshape,)
PROPERTIES = Properties(exact=True)
FIRES = True
CASE = Case(
    program="""
program "fuzzed" {
  parameter %w1 : f32[1, 4] requires_grad
  buffer %w2 : f32[4]
  out_spec (*, *)
  argument "x0" = input 0
  result = output 0
  result = output 1
  graph(%x0 : f32[2, 2]) {
    %ravel = aten.ravel(%x0) : f32[4]
    %view_as = aten.view_as(%w1, %ravel) : f32[4]
    %batch_norm = aten.batch_norm(%w1, None, None, %view_as, %w2) {training=False, momentum=0.1, eps=1e-05, cudnn_enabled=False} : f32[1, 4]
    return %x0, %batch_norm
  }
}
""",
    inputs=(
        torch.tensor(
            [1.5409960746765137, -0.293428897857666, -2.1787893772125244, 0.5684312582015991], dtype=torch.float32
        ).reshape((2, 2)),
    ),
    weights={
        "w1": torch.tensor(
            [0.6613521575927734, 0.266924113035202, 0.06167725846171379, 0.6213173270225525], dtype=torch.float32
        ).reshape((1, 4)),
        "w2": torch.tensor(
            [1.4220426082611084, 1.0715192556381226, 1.4556715488433838, 1.2116916179656982], dtype=torch.float32
        ),
    },
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
