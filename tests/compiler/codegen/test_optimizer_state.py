"""Parameters of the emitted module come in the original's order: the state of an optimizer knows them by number."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import nn

from graphwright import transform


class Reordered(nn.Module):
    """Its batch norm is fused with the convolution, over the norm that stands between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.bn = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.bn(self.conv(x)).relu()) * self.scale
        return y


def test_the_state_of_an_optimizer_loads() -> None:
    torch.manual_seed(0)
    x, losses = torch.randn(2, 3, 8, 8), list[torch.Tensor]()
    model = Reordered()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    result = transform(copy.deepcopy(model), (x,))
    other = pickle.loads(pickle.dumps(result.model))
    assert [result.parameter_map[key][0] for key, _ in other.named_parameters()] == [
        key for key, _ in model.named_parameters()
    ]
    emitted = torch.optim.Adam(other.parameters(), lr=0.05)
    emitted.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for module, each in ((model, optimizer), (other, emitted)):
        for _ in range(3):
            each.zero_grad()
            loss = module(x).square().mean()
            loss.backward()
            each.step()
        losses.append(module(x).square().mean().detach())
    torch.testing.assert_close(losses[1], losses[0])
