"""The steps of a generated module: one function for each family of statements."""

from __future__ import annotations

from collections.abc import Callable

from fuzz.modules.writer import Writer

_DIMENSIONS = {3: "1d", 4: "2d", 5: "3d"}

ACTIVATIONS = (
    "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.ReLU6()", "nn.GELU()", 'nn.GELU(approximate="tanh")', "nn.SiLU()",
    "nn.SiLU(inplace=True)", "nn.Hardswish()", "nn.Hardsigmoid()", "nn.Sigmoid()", "nn.Tanh()", "nn.Mish()",
    "nn.LeakyReLU(0.1, inplace=True)", "nn.ELU()", "nn.PReLU()", "nn.Softplus()", "nn.Hardtanh(0.0, 6.0)",
    "nn.Identity()",
)  # fmt: skip
FUNCTIONS = (
    "torch.relu({x})", "F.relu({x})", "F.relu6({x})", "F.gelu({x})", 'F.gelu({x}, approximate="tanh")', "F.silu({x})",
    "F.hardswish({x})", "torch.sigmoid({x})", "{x}.tanh()", "F.leaky_relu({x}, 0.2)", "{x}.clamp(-0.5, 1.0)",
    "{x} * torch.sigmoid({x})", "{x} * F.relu6({x} + 3) / 6", "torch.maximum({x}, {x} * 0.1)", "{x}.abs()", "-{x}",
    "{x}.exp().clamp(max=10.0)", "{x}.square()", "{x} * 0.5 * (1.0 + torch.erf({x} / 1.4142135623730951))",
)  # fmt: skip
IN_PLACE = (
    "{x}.relu_()", "{x} += 1", "{x} *= 2.0", "{x}.add_({y})", "{x} += {y}", "{x}.mul_({y})", "{x}.clamp_(min=0.1)",
    "F.relu({x}, inplace=True)", "{x}.view(-1).mul_(0.5)", "{x}.select(0, 0).zero_()", "{x}.copy_({y} * 2)",
    "{x}.t_().mul_(2)", "{x}.fill_(0.25)", "torch.sigmoid_({x})", "{x}.transpose(0, 1)[:1].add_(1)",
)  # fmt: skip
SLICES = (
    "{x}[..., :1] = 0.5", "{x}[:1] = {y}[:1]", "{x}[0] += 1", "{x}[..., ::2] *= 3", "{x}[..., 0] = {y}[..., 0]",
    "{x}[:, :1] = {x}[:, :1] * 2", "{x}[-1:] = {x}[:1].clone()", "{x}[..., -1].add_(2)",
)  # fmt: skip
VIEWS = (
    "{x}.view(-1)", "{x}.view({x}.shape)", "{x}[1:]", "{x}[..., ::2]", "{x}[0]", "{x}.unsqueeze(0)",
    "{x}.transpose(0, -1)", "{x}.mT", "{x}.narrow(-1, 0, 1)", "{x}.chunk(2, -1)[0]", "{x}.detach()",
)  # fmt: skip
SCALARS = (
    "{x} + 0", "{x} * 1", "{x} * 1.0", "{x} + 0.5", "2 - {x}", "{x} / 2", "1 + {x} * -1.0", "{x}.sub(1)", "{x} ** 2",
    "{x} / {x}.shape[0]", "{x} * ({x}.dim() + 0.5)", "{x}.mul(0.25)", "{x} - {x}.size(-1)",
    "torch.add({x}, {x}, alpha=2)", "torch.rsub({x}, 1.0)", "{x} // 0.7",
)  # fmt: skip
MASKS = (
    "torch.where({x} > 0.123, {x}, {x} * 0.1)", "{x}.masked_fill({x} < 0.321, 0.0)", "({x} > 0.123).to({x}.dtype)",
    "{x} * ({x} > -0.123)", "torch.where({x} > 0.123, {x}, 0.0)", "{x}.clone()", "{x}.to({x}.dtype)",
    "{x}.to(torch.float64).to({x}.dtype)", "{x}.to(torch.float16).to({x}.dtype)",
    "{x}.to(torch.bfloat16).to({x}.dtype)", "torch.zeros_like({x}) + {x}",
    "{x} + torch.ones({x}.shape, dtype={x}.dtype)", "({x} > 0.123) & ({x} < 2.0)", "({x} * 3.3).to(torch.int64)",
    "{x}.detach() + {x}",
)  # fmt: skip
POOLS = (
    "nn.AdaptiveAvgPool{d}(1)", "nn.AdaptiveAvgPool{d}({last})", "nn.MaxPool{d}(2)", "nn.AvgPool{d}(2, ceil_mode=True)",
    "nn.MaxPool{d}(3, stride=1, padding=1)", "nn.AvgPool{d}(1)",
)  # fmt: skip
LAYOUTS = (
    "{x}.transpose({i}, {j})", "{x}.permute({order})", "{x}.flatten({start})", "{x}.reshape(-1)", "{x}.unsqueeze({i})",
    "{x}.squeeze({i})", "{x}.reshape({x}.shape[0], -1)", "{x}.contiguous()", "{x}.flip({i})", "{x}.roll(1, {i})",
    "{x}.narrow({i}, 0, 1)", "{x}.select({i}, 0)", "{x}[..., 0]", "{x}[None]", "{x}[:, None]", "{x}[..., ::2]",
    "{x}[1:]", "{x}.reshape({x}.shape)", "{x}.expand_as({x})", "{x}.unsqueeze(0).expand(2, {minus})",
    "{x}.movedim(0, -1)", "{x}.mT", "{x}.view({x}.size(0), -1)", "F.pad({x}, (0, 1))", "{x}.repeat({ones})",
    "{x}.index_select({i}, torch.tensor([0]))",
)  # fmt: skip
REDUCTIONS = (
    "{x}.mean({dim})", "{x}.sum({dim}, keepdim=True)", "{x}.amax({dim})", "{x}.sum()", "{x}.mean({dim}, keepdim=True)",
    "{x}.max({dim}).values", "{x}.var({dim}, correction=0)", "{x}.cumsum({dim})",
    "{x}.norm(dim={dim}, keepdim=True) + 1", "{x}.argmax({dim})", "torch.softmax({x}, dim={dim})", "{x}.mean()",
)  # fmt: skip
NORMALIZATIONS = (
    "F.layer_norm({x}, ({last},))", "F.normalize({x}, dim={dim})", "F.softmax({x}, {dim})",
    "({x} - {x}.mean(-1, keepdim=True)) / ({x}.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()",
)  # fmt: skip
COMBINATIONS = (
    "{x} + {y}", "{y} + {x}", "{x} * {y}", "{x} - {y}", "torch.minimum({x}, {y})", "torch.add({x}, {y}, alpha=2)",
    "torch.stack([{x}, {y}], {place})",
)  # fmt: skip
PRODUCTS = (
    "torch.einsum('...i,...i->...', {x}, {y})", "torch.einsum('...i,...j->...ij', {x}, {y})",
    "torch.einsum('i...,i...->...', {x}, {y})",
)  # fmt: skip
POOLED = ("F.adaptive_avg_pool2d({x}, 1)", "{x}.mean((2, 3), keepdim=True)", "{x}[:, :, :1, :1]")
FLATTENED = (
    "torch.flatten({x}, 1)", "{x}.flatten(1)", "{x}.view({x}.size(0), -1)", "{x}.squeeze(-1).squeeze(-1)",
    "{x}.reshape({x}.shape[0], -1)", "{x}[:, :, 0, 0]", "{x}.mean((2, 3))",
)  # fmt: skip
ATTENTION_MASKS = (
    "", ", is_causal=True", ", scale=0.3", ", attn_mask=torch.ones({n}, {n}, dtype=torch.bool).tril()",
    ", attn_mask=torch.arange({n}, dtype={x}.dtype)", ", attn_mask={x}[..., :1] > 0.123",
)  # fmt: skip


def _activation(w: Writer, x: str) -> None:
    if w.flag():
        w.let(w.one_of(*FUNCTIONS).format(x=x))
        return
    kind = w.one_of(*ACTIVATIONS)
    w.layer(kind.replace("inplace=True", "") if not w.writable(x) else kind, x)


def _scalar(w: Writer, x: str) -> None:
    w.let(w.one_of(*SCALARS).format(x=x))


def _mask(w: Writer, x: str) -> None:
    w.let(w.one_of(*MASKS).format(x=x))


def _in_place(w: Writer, x: str) -> None:
    if w.writable(x):
        w.run(w.one_of(*IN_PLACE).format(x=x, y=w.same_shape(x)))


def _written_later(w: Writer, x: str) -> None:
    """Take a view, mutate what it is of or another view of that, and go on with the view."""
    if not w.writable(x) or w.flag():
        w.let(w.one_of(f"{x} * 1.5", f"{x}.clone()"))
        x = w.values[-1]
    if w.writable(x) and w.let(w.one_of(*VIEWS).format(x=x)):
        view = w.values[-1]
        w.run(w.one_of(*IN_PLACE, *SLICES).format(x=x, y=w.same_shape(x)))
        w.let(w.one_of(*SCALARS).format(x=view))


def _convolution(w: Writer, x: str) -> None:
    shape = w[x].shape
    if len(shape) not in _DIMENSIONS:
        return
    channels, kernel = shape[1], w.one_of(1, 3, 2)
    groups = w.one_of(1, 1, channels)
    out = channels * w.one_of(1, 2) if groups > 1 else w.one_of(channels, 2, 4)
    options = f"stride={w.one_of(1, 1, 2)}, padding={w.integer(0, 1)}, groups={groups}, bias={w.flag()}"
    transposed = "ConvTranspose" if w.integer(0, 7) == 7 else "Conv"
    mode = ', padding_mode="replicate"' if transposed == "Conv" and w.integer(0, 7) == 7 else ""
    w.layer(f"nn.{transposed}{_DIMENSIONS[len(shape)]}({channels}, {out}, {kernel}, {options}{mode})", x)


def _block(w: Writer, x: str) -> None:
    """Write a convolution, a normalization and an activation, as in most networks for images."""
    if w[x].dim() not in _DIMENSIONS or not w[x].shape[1]:
        return
    if w.integer(0, 2) == 2 and w[x].dim() == 4:
        w.layer(f"Residual({w[x].shape[1]}, {w.flag()})", x)
        return
    _convolution(w, x)
    made = w[w.values[-1]]
    if made.dim() not in _DIMENSIONS:
        return  # no convolution fits
    w.layer(f"nn.BatchNorm{_DIMENSIONS[made.dim()]}({made.shape[1]})", w.values[-1])
    if w.flag():
        _activation(w, w.values[-1])


def _slice_assignment(w: Writer, x: str) -> None:
    if w.writable(x) and w[x].dim():
        w.run(w.one_of(*SLICES).format(x=x, y=w.same_shape(x)))


def _functional_convolution(w: Writer, x: str) -> None:
    shape = w[x].shape
    if len(shape) != 4:
        return
    name = w.fresh("weight")
    w.set_up(f"self.{name} = nn.Parameter(torch.randn({w.one_of(shape[1], 2)}, {shape[1]}, 1, 1))")
    w.let(f"F.conv2d({x}, self.{name})")


def _normalization(w: Writer, x: str) -> None:
    shape = w[x].shape
    if len(shape) < 2:
        return
    norms = {2: "1d", **_DIMENSIONS}
    last, channels = shape[-1], shape[1]
    choices = [
        f"nn.LayerNorm({last})",
        f"nn.LayerNorm({last}, elementwise_affine=False)",
        f"nn.RMSNorm({last}, eps=1e-5)",
    ]
    if len(shape) in norms:
        stats = w.one_of("", "", ", affine=False", ", momentum=None", ", track_running_stats=False")
        choices = [f"nn.BatchNorm{norms[len(shape)]}({channels}, eps={w.one_of(1e-5, 1e-3)}{stats})"] * 3 + choices
        choices += [f"nn.GroupNorm({w.one_of(1, max(1, channels))}, {channels})"]
    if w.flag():
        w.layer(w.one_of(*choices), x)
    else:
        dim = w.dim(x)
        w.let(w.one_of(*NORMALIZATIONS).format(x=x, dim=dim, last=last))


def _pool(w: Writer, x: str) -> None:
    shape = w[x].shape
    if len(shape) not in _DIMENSIONS:
        return
    w.layer(w.one_of(*POOLS).format(d=_DIMENSIONS[len(shape)], last=shape[-1]), x)


def _linear(w: Writer, x: str) -> None:
    if not w[x].dim():
        return
    last, out = w[x].shape[-1], w.one_of(w[x].shape[-1], 2, 3)
    if w.flag():
        w.layer(f"nn.Linear({last}, {out}, bias={w.flag()})", x)
        return
    name = w.fresh("weight")
    w.set_up(f"self.{name} = nn.Parameter(torch.randn({out}, {last}))")
    w.let(w.one_of(f"F.linear({x}, self.{name})", f"{x} @ self.{name}.t()", f"torch.matmul({x}, self.{name}.T)"))


def _classifier(w: Writer, x: str) -> None:
    shape = w[x].shape
    if len(shape) == 4:
        w.let(w.one_of(*POOLED).format(x=x))
        w.let(w.one_of(*FLATTENED).format(x=w.values[-1]))
        w.layer(f"nn.Linear({w[w.values[-1]].shape[-1]}, 3)", w.values[-1])


def _combination(w: Writer, x: str) -> None:
    y, rank = w.same_shape(x), w[x].dim()
    choices, place = [*COMBINATIONS], w.integer(0, rank)
    if rank:
        choices += [f"torch.cat([{{x}}, {{y}}], {w.dim(x)})", *PRODUCTS]
    if rank == 3:
        choices += ["torch.einsum('bij,bkj->bik', {x}, {y})", "torch.bmm({x}, {y}.transpose(1, 2))"]
    w.let(w.one_of(*choices).format(x=x, y=y, place=place))


def _layout(w: Writer, x: str) -> None:
    rank = w[x].dim()
    if not rank:
        w.let(w.one_of(f"{x}.unsqueeze(0)", f"{x}.reshape(1, 1)", f"{x}.expand(2, 3)"))
        return
    i, j = w.dim(x), w.dim(x)
    order = w.order(rank)
    kind = w.one_of(*LAYOUTS)
    if "unsqueeze" in kind and rank > 4:
        return
    start = w.integer(0, 1)
    ones, minus = ", ".join(["2"] + ["1"] * (rank - 1)), ", ".join(["-1"] * rank)
    w.let(kind.format(x=x, i=i, j=j, order=order, start=start, ones=ones, minus=minus))


def _parts(w: Writer, x: str) -> None:
    rank = w[x].dim()
    if not rank:
        return
    dim = w.one_of(w.dim(x), -1, min(rank - 1, 1))  # models split channels
    size = w[x].shape[dim]
    if size == 2:
        w.let(w.one_of(f"{x}.unbind({dim})", f"{x}.chunk(2, {dim})", f"{x}.split(1, {dim})"), 2)
    elif size == 3:
        w.let(w.one_of(f"{x}.split([1, 2], {dim})", f"torch.chunk({x}, 2, {dim})"), 2)
    elif size > 1 and size % 2 == 0:
        w.let(w.one_of(f"{x}.chunk(2, {dim})", f"torch.split({x}, {size // 2}, dim={dim})"), 2)


def _reduction(w: Writer, x: str) -> None:
    if not w[x].dim():
        return
    dim = w.dim(x)
    w.let(w.one_of(*REDUCTIONS).format(x=x, dim=dim))


def _attention(w: Writer, x: str) -> None:
    tokens = {4: f"{x}.flatten(2).transpose(1, 2)", 2: f"{x}[None]"}.get(w[x].dim())  # pixels are tokens
    if tokens is not None and w.let(tokens):
        x = w.values[-1]
    shape = w[x].shape
    if len(shape) != 3 or not shape[-1]:
        return
    width = shape[-1]
    heads = 2 if width % 2 == 0 else 1
    kind = w.integer(0, 4)
    if kind == 0:
        w.layer(f"nn.MultiheadAttention({width}, {heads}, batch_first={w.flag()})", x, "{layer}({x}, {x}, {x})[0]")
    elif kind == 1:
        mask = w.one_of(*ATTENTION_MASKS).format(x=x, n=shape[1])
        w.let(f"F.scaled_dot_product_attention({x}, {x}, {x}{mask})")
    elif kind == 2:
        w.let(f"torch.softmax({x} @ {x}.transpose(-2, -1) * {width**-0.5}, dim=-1) @ {x}")
    elif kind == 3:
        scores, bias = f"{x} @ {x}.transpose(-2, -1)", f"torch.ones({shape[1]}, {shape[1]}, dtype=torch.bool).triu(1)"
        w.let(f"({scores} / {width}).masked_fill({bias}, float('-inf')).softmax(-1) @ {x}")
    else:
        w.layer(f"nn.Linear({width}, {3 * width})", x)
        fused, n, t = w.values[-1], shape[0], shape[1]
        split = w.one_of("{x}.chunk(3, -1)", "{x}.split({width}, 2)", "torch.tensor_split({x}, 3, dim=-1)")
        by_head = f"{fused}.reshape({n}, {t}, 3, {heads}, {width // heads}).permute(2, 0, 3, 1, 4).unbind(0)"
        w.let(split.format(x=fused, width=width) if w.flag() else by_head, 3)
        if w[w.values[-1]].dim() == 3:
            q, k, v = w.values[-3:]
            w.let(f"F.scaled_dot_product_attention({q}, {k}, {v})")
        if w[w.values[-1]].dim() == 4:
            q, k, v = w.values[-3:]
            w.let(f"F.scaled_dot_product_attention({q}, {k}, {v}).transpose(1, 2).reshape({n}, {t}, {width})")


def _container(w: Writer, x: str) -> None:
    shape = w[x].shape
    if not shape or not shape[-1]:
        return
    last, act = shape[-1], w.one_of("nn.ReLU()", "nn.GELU()", "nn.SiLU()")
    layer = f"nn.Linear({last}, {last})"
    kind = w.integer(0, 4)
    if kind == 0:
        w.layer(f"nn.Sequential({layer}, {act}, nn.Sequential(nn.Dropout(0.5), {layer}))", x)
    elif kind == 1:
        w.layer(f"Block({last}, {act})", x)
    elif kind == 2 and len(shape) == 4 and shape[1]:
        w.layer(f"Residual({shape[1]}, {w.flag()})", x)
    elif kind == 3:
        entries = f'"main": nn.Linear({last}, {last}), "act": {act}'
        w.layer(f"nn.ModuleDict({{{entries}}})", x, '{layer}["act"]({layer}["main"]({x}))')
    else:
        path = f"self.{w.fresh('layers')}"
        w.set_up(f"{path} = nn.ModuleList([nn.Linear({last}, {last}) for _ in range(2)])")
        name = w.fresh()
        if w.run(f"{name} = {x}") and w.run(
            f"for layer in {path}: {name} = {w.one_of('F.relu', 'torch.tanh')}(layer({name})) + {name}"
        ):
            w.values.append(name)


def _reuse(w: Writer, x: str) -> None:
    """Call a layer again: the first that accepts the value."""
    start = w.integer(0, max(0, len(w.layers) - 1))
    for path in (*w.layers[start:], *w.layers[:start]):
        if w.let(f"{path}({x})"):
            return


def _tied(w: Writer, x: str) -> None:
    if w[x].dim() and w[x].shape[-1]:
        last, a, b = w[x].shape[-1], w.fresh("linear"), w.fresh("linear")
        w.set_up(f"self.{a} = nn.Linear({last}, {last})")
        w.set_up(f"self.{b} = nn.Linear({last}, {last})")
        w.set_up(f"self.{b}.weight = self.{a}.weight")
        w.let(f"self.{b}({w.one_of('torch.relu', '')}(self.{a}({x})))")


def _state(w: Writer, x: str) -> None:
    kind = w.integer(0, 2)
    name = w.fresh("buffer")
    if kind == 0:
        w.set_up(f'self.register_buffer("{name}", torch.zeros(()))')
        w.run(
            w.one_of(
                f"self.{name}.add_(1)",
                f"self.{name} += {x}.detach().sum()",
                f"self.{name}.mul_(0.5).add_({x}.detach().mean())",
            )
        )
        w.let(f"{x} + self.{name}")
    elif kind == 1 and w[x].dim():
        w.set_up(f'self.register_buffer("{name}", torch.zeros({w[x].shape[-1]}))')
        w.run(f"self.{name}.copy_(self.{name} * 0.9 + 0.1)")
        w.let(f"{x} * self.{name}")
    else:
        w.set_up(f"self.{w.fresh('unused')} = nn.Parameter(torch.randn(2))")


def _dropout(w: Writer, x: str) -> None:
    if w.flag():
        w.let(f"F.dropout({x}, {w.one_of(0.5, 0.0)}, training={w.one_of('self.training', 'False')})")
    else:
        w.layer(
            w.one_of("nn.Dropout(0.5)", "nn.Dropout(0.0)", f"nn.Dropout{_DIMENSIONS.get(w[x].dim(), '2d')}(0.5)"), x
        )


Step = Callable[[Writer, str], None]

STEPS: tuple[Step, ...] = (
    _activation, _scalar, _combination, _combination, _layout, _layout, _layout, _in_place, _in_place,
    _slice_assignment, _written_later, _linear, _convolution, _block, _block, _normalization, _normalization, _pool,
    _classifier, _parts, _parts, _reduction, _attention, _attention, _container, _container, _reuse, _reuse, _tied,
    _state, _state, _dropout, _mask, _functional_convolution,
)  # fmt: skip
"""All steps, the simplest first: draws shrink towards them."""
