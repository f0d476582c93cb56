"""Small modules made of a function, compiled and held to the original."""

from __future__ import annotations

import torch
from torch import nn

from compiler.driver import transform
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from tests.zoo.equality import assert_equal_outputs


class Calls(nn.Module):
    """A module whose forward is a function of itself and its inputs."""

    def __init__(self, function, **children):
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)
        self.function = function

    def forward(self, *args):
        return self.function(self, *args)


def run(function, *args, patterns=TENSORRT_PATTERNS, **children):
    model = Calls(function, **children).eval()
    result = transform(model, args, patterns=patterns, validate="each")
    assert_equal_outputs(model, result.model, *args)
    return result


def image(*shape):
    return torch.randn(shape or (2, 4, 6, 6))
