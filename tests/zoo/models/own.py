"""Models of our own: architectures that no package of the others has, and conventions of calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from tests.zoo.models.entry import Entry, Made, named
from tests.zoo.models.llama import LlamaSizes, make_llama


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _block(c: int, d: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(c, d, 3, padding=1, bias=False), nn.BatchNorm2d(d), nn.ReLU(inplace=True)),
        *(nn.Conv2d(d, d, 3, padding=1, bias=False), nn.BatchNorm2d(d), nn.ReLU(inplace=True)),
    )


class UNet(nn.Module):
    """Three levels with skip connections and transposed convolutions."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down = nn.ModuleList([_block(3, width), _block(width, 2 * width), _block(2 * width, 4 * width)])
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in (2 * width, width))
        self.merge = nn.ModuleList(_block(2 * c, c) for c in (2 * width, width))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips: list[torch.Tensor] = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips[:-1]), strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        return self.head(x)


class Recurrent(nn.Module):
    """A tagger: an embedding, a recurrent network in both directions, a linear layer for each step."""

    def __init__(self, network: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.network = network(16, 12, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.head = nn.Linear(24, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.network(self.embed(ids))[0])


class Cell(nn.Module):
    """A loop over steps with an LSTM cell, whose state is given and returned."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(8, 16)

    def forward(
        self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        steps = []
        for step in x.unbind(1):
            state = self.cell(step, state)
            steps.append(state[0])
        return torch.stack(steps, 1), state


def _wave_net() -> nn.Module:
    layers: list[nn.Module] = []
    for c, d in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv1d(c, d, 9, stride=2, padding=4), nn.BatchNorm1d(d), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 4))


def _volume_net() -> nn.Module:
    layers: list[nn.Module] = []
    for c, d in ((1, 8), (8, 16)):
        layers += [nn.Conv3d(c, d, 3, padding=1, bias=False), nn.BatchNorm3d(d), nn.LeakyReLU(0.1), nn.MaxPool3d(2)]
    return nn.Sequential(*layers, nn.ConvTranspose3d(16, 8, 2, stride=2), nn.GroupNorm(2, 8), nn.SiLU())


class Experts(nn.Module):
    """Two of four experts for each token: every expert runs on all tokens, weighted by the router."""

    def __init__(self, width: int = 16, experts: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(experts)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        scores, chosen = self.router(y).softmax(-1).topk(2, dim=-1)
        weights = torch.zeros_like(self.router(y)).scatter(-1, chosen, scores / scores.sum(-1, keepdim=True))
        return x + sum(expert(y) * weights[..., i : i + 1] for i, expert in enumerate(self.experts))


class RoutedExperts(Experts):
    """Each expert runs on its own tokens only, whose number depends on the data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(x).flatten(0, -2)
        scores, chosen = self.router(tokens).softmax(-1).topk(2, dim=-1)
        out = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            rows, column = torch.where(chosen == i)
            out = out.index_add(0, rows, expert(tokens[rows]) * scores[rows, column, None])
        return x + out.view_as(x)


class Cached(nn.Module):
    """One step of attention with a cache of keys and values in buffers, which each call extends."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, width: int = 16, heads: int = 2, length: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.register_buffer("keys", torch.zeros(1, heads, length, width // heads))
        self.register_buffer("values", torch.zeros(1, heads, length, width // heads))

    def forward(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        self.keys.index_copy_(2, position, k)
        self.values.index_copy_(2, position, v)
        mask = torch.arange(self.keys.shape[2], device=x.device)[None] <= position
        y = F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


class Passed(nn.Module):
    """Attention whose cache of keys and values is an argument and a result."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: torch.Tensor, cache: dict[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if cache is not None:
            k, v = torch.cat([cache["k"], k], 2), torch.cat([cache["v"], v], 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        return self.out(y.transpose(1, 2).flatten(2)), {"k": k, "v": v}


@dataclass
class Scores:
    """What a model of two heads returns."""

    logits: torch.Tensor
    box: torch.Tensor | None = None


pytree.register_dataclass(Scores, serialized_type_name="tests.zoo.Scores")


class TwoHeads(nn.Module):
    """Several inputs of several ranks, one by keyword; a dict with a dataclass and a tuple as the result."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.Hardswish())
        self.table = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.score = nn.Linear(16, 3)
        self.box = nn.Linear(16, 4)

    def forward(
        self, picture: torch.Tensor, *, features: torch.Tensor, scale: float = 1.0
    ) -> dict[str, Scores | tuple[torch.Tensor, torch.Tensor]]:
        a, b = self.image(picture).mean((2, 3)), self.table(features)
        joined = torch.cat([a * scale, b], 1)
        return {"scores": Scores(self.score(joined), self.box(joined).sigmoid()), "parts": (a, b)}


class Squeezed(nn.Module):
    """Inverted residuals with squeeze and excitation, and a scale that is written out."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, 4 * width, 1), nn.BatchNorm2d(4 * width), nn.SiLU())
        self.depth = nn.Sequential(
            nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width), nn.BatchNorm2d(4 * width), nn.SiLU()
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(4 * width, 8, 1), nn.SiLU(), nn.Conv2d(8, 4 * width, 1), nn.Sigmoid()
        )
        self.project = nn.Sequential(nn.Conv2d(4 * width, width, 1), nn.BatchNorm2d(width))
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depth(self.expand(x))
        return x + self.scale * self.project(y * self.squeeze(y))


class Autoencoder(nn.Module):
    """A variational autoencoder: it draws random numbers in both modes."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ELU(), nn.Flatten(), nn.Linear(512, 8))
        self.decode = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)), nn.Upsample(scale_factor=2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, log_variance = self.encode(x).chunk(2, 1)
        drawn = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decode(drawn).tanh(), mean, log_variance


class GraphNet(nn.Module):
    """Two rounds of messages along the edges of a graph, summed at their targets."""

    def __init__(self) -> None:
        super().__init__()
        self.message = nn.ModuleList(nn.Linear(16, 8) for _ in range(2))
        self.update = nn.ModuleList(nn.GRUCell(8, 8) for _ in range(2))

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        source, target = edges
        for message, update in zip(self.message, self.update, strict=True):
            sent = message(torch.cat([nodes[source], nodes[target]], -1)).relu()
            nodes = update(torch.zeros_like(nodes).index_add(0, target, sent), nodes)
        return nodes.sum(0)


def _plain(model: nn.Module, *args: object, **kwargs: object) -> Made:
    return model.eval(), args, kwargs


_MAKERS: dict[str, Callable[[], Made]] = {
    "unet": lambda: _plain(UNet(), _x(2, 3, 32, 32)),
    "lstm": lambda: _plain(Recurrent(nn.LSTM), torch.arange(12).reshape(2, 6)),
    "gru": lambda: _plain(Recurrent(nn.GRU), torch.arange(12).reshape(2, 6)),
    "lstm_cell": lambda: _plain(Cell(), _x(2, 4, 8), (_x(2, 16), _x(2, 16))),
    "wave_1d": lambda: _plain(_wave_net(), _x(2, 1, 128)),
    "volume_3d": lambda: _plain(_volume_net(), _x(2, 1, 8, 12, 12)),
    "experts": lambda: _plain(Experts(), _x(2, 6, 16)),
    "experts_routed": lambda: _plain(RoutedExperts(), _x(2, 6, 16)),
    "cache_in_buffers": lambda: _plain(Cached(), _x(1, 1, 16), torch.tensor([3])),
    "cache_as_argument": lambda: _plain(Passed(), _x(2, 1, 16), {"k": _x(2, 2, 3, 8), "v": _x(2, 2, 3, 8) + 1}),
    "cache_left_out": lambda: _plain(Passed(), _x(2, 5, 16)),
    "two_heads": lambda: _plain(TwoHeads(), _x(3, 3, 16, 16), features=_x(3, 5)),
    "squeeze": lambda: _plain(Squeezed(), _x(2, 16, 8, 8)),
    "autoencoder": lambda: _plain(Autoencoder(), _x(2, 1, 16, 16)),
    "graph": lambda: _plain(GraphNet(), _x(5, 8), torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])),
    "llama": lambda: _plain(make_llama(LlamaSizes(32, 64, 2, 4, 2, 99)), torch.arange(12).reshape(2, 6)),
}


def entries() -> Iterator[Entry]:
    """Yield the models of this file."""
    return named("own", _MAKERS)
