"""Folded weights that are beyond float16 are not folded."""

import torch

from compiler.pipeline import parse_pipeline
from fuzz.programs.case import Case
from fuzz.programs.check import Properties
from fuzz.search.sound import check

SUBJECT = parse_pipeline("fold-batch-norm")
PROPERTIES = Properties()
FIRES = False
CASE = Case.seeded(
    """
program "case" {
  parameter %w : f16[3, 3, 1, 1] requires_grad
  parameter %gamma : f16[3] requires_grad
  parameter %beta : f16[3] requires_grad
  buffer %mean : f16[3]
  buffer %var : f16[3]
  argument "x" = input 0
  result = output 0
  graph(%x : f16[2, 3, 4, 4]) {
    %conv = aten.conv2d(%x, %w, None) : f16[2, 3, 4, 4]
    %bn = aten.batch_norm(%conv, %gamma, %beta, %mean, %var) {training=False, momentum=0.1, eps=1e-05, cudnn_enabled=False} : f16[2, 3, 4, 4]
    return %bn
  }
}
""",
    values={"gamma": torch.full((3,), 6e4, dtype=torch.float16), "var": torch.full((3,), 1e-6, dtype=torch.float16)},
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
