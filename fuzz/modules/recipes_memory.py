"""Recipes for arguments, re-assigned buffers, transposed weights, and mutations through views."""

from __future__ import annotations

from functools import partial

from fuzz.modules.recipes import ANY, IMAGES, MAPS, ROWS, SQUARES, TOKENS, Recipe, of, variants
from fuzz.modules.writer import Writer

_OF_BUILTINS = "$x + input - 2 * input_1 + 5 * input_2"
KEYWORDS = (
    *(
        Recipe(f"keywords: {name}", result, signature=signature, keywords=keywords, on_input=True)
        for name, signature, keywords, result in (
            ("two in another order", "x, a, b", ("b", "a"), "$x + a - 2 * b"),
            ("all in another order", "x, a, b", ("b", "a", "x"), "$x + a - 2 * b"),
            ("the input last", "x, a", ("a", "x"), "$x - 2 * a"),
            ("three in another order", "x, a, b, c", ("c", "a", "b"), "$x + a - 2 * b + 5 * c"),
            ("keyword-only", "x, *, a, b", ("b", "a"), "$x + a - 2 * b"),
            ("names of builtins", "x, input, input_1, input_2", ("input_1", "input_2", "input"), _OF_BUILTINS),
            ("defaults", "x, a=None, b=1.0", ("b", "a"), "$x + a - 2 * b"),
        )
    ),
    *(
        Recipe(f"variadic keywords: {name}", body=body, signature="x, **features", keywords=keywords, on_input=True)
        for name, keywords, body in (
            ("values", ("b", "a"), "$y = $x\nfor feature in features.values():\n    $y = $y * 0.5 + feature"),
            ("items", ("a", "b", "c"), "$y = $x\nfor name, part in features.items():\n    $y = $y * 0.5 + part"),
            ("cat", ("c", "a"), "$y = torch.cat([$x, *features.values()], -1)"),
        )
    ),
)

_STEPPER = """
class Stepper$n(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("step", torch.zeros(()){})

    def forward(self, x):
        {}
        return x * self.step
"""


def _stepper(statement: str, dtype: str = "") -> dict[str, str]:
    return of("self.stepper$n($x)", setup="self.stepper$n = Stepper$n()", define=_STEPPER.format(dtype, statement))


def _outside(statement: str) -> dict[str, str]:
    return of(
        "$x + self.holder$n.v",
        setup='self.holder$n = nn.Module()\nself.holder$n.register_buffer("v", torch.zeros(()))',
        body=statement,
    )


def _gained(statement: str) -> dict[str, str]:
    """Return the fields of a variant whose buffer may carry a gradient into the next call."""
    fields = _stepper(statement)
    parameter = "        self.gain = nn.Parameter(torch.full((), 0.7))\n"
    return {**fields, "define": fields["define"].replace("\n\n    def forward", f"\n{parameter}\n    def forward")}


_BUFFER = 'self.register_buffer("v$n", torch.zeros(()))'

BUFFERS = variants(
    "re-assigned buffer",
    {
        "in a submodule": _stepper("self.step = self.step + 1"),
        "augmented in a submodule": _stepper("self.step += 1"),
        "integer in a submodule": _stepper("self.step = self.step + 1", ".long()"),
        "average in a submodule": _stepper("self.step = self.step * 0.9 + x.detach().mean() * 0.1"),
        "setattr in a submodule": _stepper('setattr(self, "step", self.step + 1)'),
        "_buffers in a submodule": _stepper('self._buffers["step"] = self.step + 1'),
        "after its use in a submodule": of(
            "self.stepper$n($x)",
            setup="self.stepper$n = Stepper$n()",
            define=_STEPPER.format("", "x, self.step = x * self.step, self.step + 1"),
        ),
        "from outside": _outside("self.holder$n.v = self.holder$n.v + 1"),
        "setattr from outside": _outside('setattr(self.holder$n, "v", self.holder$n.v + 1)'),
        "_buffers from outside": _outside('self.holder$n._buffers["v"] = self.holder$n.v + 1'),
        "two levels down": of(
            "$x + self.outer$n.inner.v",
            setup="self.outer$n = nn.Module()\nself.outer$n.inner = nn.Module()\n"
            'self.outer$n.inner.register_buffer("v", torch.zeros(()))',
            body="self.outer$n.inner.v = self.outer$n.inner.v * 0.5 + 1",
        ),
        "of the root": of(
            "$x + self.v$n", setup='self.register_buffer("v$n", torch.zeros(()))', body="self.v$n = self.v$n + 1"
        ),
        "not persistent": of(
            "$x + self.holder$n.v",
            setup='self.holder$n = nn.Module()\nself.holder$n.register_buffer("v", torch.zeros(()), persistent=False)',
            body="self.holder$n.v = self.holder$n.v + 1",
        ),
        "with a gradient": _gained("self.step = self.step * 0.5 + (x * self.gain).mean()"),
        "written with a gradient": _gained("self.step.copy_(self.step * 0.5 + (x * self.gain).mean())"),
        "written without a gradient": _gained(
            "with torch.no_grad():\n            self.step.mul_(0.5).add_((x * self.gain).mean())"
        ),
        "truncated in place": _gained(
            "self.step.detach_()\n        self.step = self.step * 0.5 + (x * self.gain).mean()"
        ),
        "a mask in place": of(
            "$x * self.v$n",
            setup=_BUFFER.replace("zeros(())", "zeros((), dtype=torch.bool)"),
            body="self.v$n |= ($x.detach() > 0).any()",
        ),
        "a view that is written and returned": of(
            setup=_BUFFER.replace("zeros(())", "zeros(2, 2)"), body="$y = self.v$n.view(4)\n$y.add_($x.detach().mean())"
        ),
        "its old value": of(setup=_BUFFER, body="$y = self.v$n\nself.v$n = self.v$n + $x.detach().mean()"),
        "called twice": {**_stepper("self.step = self.step + 1"), "result": "self.stepper$n(self.stepper$n($x))"},
        "one put in the place of another": of(
            setup=f"{_BUFFER}\n{_BUFFER.replace('v$n', 'w$n')}",
            body="$y = $x + self.w$n\nself.w$n = self.v$n\nself.v$n = self.v$n * 0.5 + $x.detach().mean()",
        ),
        "two swapped": of(
            setup=f"{_BUFFER}\n{_BUFFER.replace('v$n', 'w$n')}",
            body="$y = $x + self.w$n\nself.w$n, self.v$n = self.v$n, self.w$n + $x.detach().mean()",
        ),
        "written and assigned": of(
            "$x + self.v$n", setup=_BUFFER, body="self.v$n.add_($x.detach().mean())\nself.v$n = self.v$n * 0.5"
        ),
        "detached and written": of(
            "$x + self.v$n",
            setup=_BUFFER,
            body="self.v$n = self.v$n.detach()\nself.v$n.mul_(0.5).add_($x.detach().mean())",
        ),
        "the input": of(
            setup='self.register_buffer("v$n", torch.zeros($shape))', body="$y = $x * self.v$n\nself.v$n = $x.detach()"
        ),
        "tied to another": of(
            "$x * self.v$n + self.holder$n.v",
            setup=f'{_BUFFER}\nself.holder$n = nn.Module()\nself.holder$n.register_buffer("v", self.v$n)',
            body="self.v$n = self.v$n + $x.detach().mean()",
        ),
        "a view of it returned": of(
            "self.v$n[1:]",
            setup=_BUFFER.replace("zeros(())", "zeros(3)"),
            body="self.v$n = self.v$n + $x.detach().mean()",
        ),
        "a view of what is written": of(
            "self.v$n[1:]", setup=_BUFFER.replace("zeros(())", "zeros(3)"), body="self.v$n.add_($x.detach().mean())"
        ),
    },
)


def _shared(layer: str) -> dict[str, str]:
    return of("self.layer$n($x) + self.twin$n($x * 2)", setup=f"self.layer$n = {layer}\nself.twin$n = self.layer$n")


SHARED = (
    *variants("shared module", {"batch norm": _shared("nn.BatchNorm$d($c)")}, shapes=MAPS),
    *variants(
        "shared module",
        {
            "behind a convolution and without one": of(
                "self.norm$n(F.relu(self.norm$n(self.conv$n($x))))",
                setup="self.conv$n = nn.Conv2d($c, $c, 1, bias=False)\nself.norm$n = nn.BatchNorm2d($c)",
            ),
            "behind two convolutions": of(
                "self.layers$n($x)",
                setup="self.norm$n = nn.BatchNorm2d($c)\n"
                "self.conv$n = nn.Conv2d($c, $c, 1)\n"
                "self.layers$n = nn.Sequential(self.conv$n, self.norm$n, nn.Conv2d($c, $c, 1), self.norm$n)",
            ),
        },
        shapes=IMAGES,
    ),
    *variants(
        "shared module",
        {
            "dropout": _shared("nn.Dropout(0.5)"),
            "linear": _shared("nn.Linear($last, $last)"),
            "sequence": _shared("nn.Sequential(nn.Linear($last, $last), nn.ReLU(), nn.Dropout(0.5))"),
            "of two parents": of(
                "self.right$n(self.left$n($x))",
                setup="self.left$n = nn.Sequential(nn.Linear($last, $last), nn.Dropout(0.5))\n"
                "self.right$n = nn.Sequential(nn.ReLU(), self.left$n)",
            ),
            "with a buffer": {
                **_stepper("self.step = self.step + 1"),
                "setup": "self.stepper$n = Stepper$n()\nself.twin$n = self.stepper$n",
                "result": "self.twin$n(self.stepper$n($x))",
            },
        },
    ),
)

_SQUARE = "self.weight$n = nn.Parameter(torch.randn($last, $last))"
_KERNEL = "self.kernel$n = nn.Parameter(torch.randn($c, $c, {0}, {0}))"

WEIGHTS = (
    *variants(
        "transposed weight",
        {
            "t()": "$x @ self.weight$n.t()",
            "T": "torch.matmul($x, self.weight$n.T)",
            "mT": "$x @ self.weight$n.mT",
            "transpose": "$x @ self.weight$n.transpose(0, 1)",
            "permute": "$x @ self.weight$n.permute(1, 0)",
            "F.linear": "F.linear($x, self.weight$n.t())",
            "matmul": "$x @ self.weight$n",
            "contiguous": "$x @ self.weight$n.t().contiguous()",
            "of a linear": of(
                "F.linear($x, self.linear$n.weight.t(), self.linear$n.bias)",
                setup="self.linear$n = nn.Linear($last, $last)",
            ),
            "as both": "F.linear(F.linear($x, self.weight$n), self.weight$n.t())",
            "einsum": 'torch.einsum("...i,ij->...j", $x, self.weight$n)',
            "buffer": of("$x @ self.weight$n.t()", setup='self.register_buffer("weight$n", torch.randn($last, $last))'),
            "scaled": "$x @ (self.weight$n * 0.5).t()",
            "flipped": "F.linear($x, self.weight$n.flip(0))",
        },
        setup=_SQUARE,
        shapes=ANY,
    ),
    *variants(
        "transposed weight",
        {
            "mm": "torch.mm($x, self.weight$n.t())",
            "addmm": of(
                "torch.addmm(self.bias$n, $x, self.weight$n.t())",
                setup=_SQUARE + "\nself.bias$n = nn.Parameter(torch.randn($last))",
            ),
            "on the left": "(self.weight$n.t() @ $x.t()).t()",
        },
        setup=_SQUARE,
        shapes=ROWS,
    ),
    *variants(
        "transposed weight",
        {
            "kernel": of("F.conv2d($x, self.kernel$n.transpose(0, 1))", setup=_KERNEL.format(1)),
            "kernel by permute": of(
                "F.conv2d($x, self.kernel$n.permute(1, 0, 3, 2), padding=1)", setup=_KERNEL.format(3)
            ),
            "matrix as kernel": of(
                "F.conv2d($x, self.weight$n.t()[:, :, None, None])",
                setup="self.weight$n = nn.Parameter(torch.randn($c, $c))",
            ),
        },
        shapes=IMAGES,
    ),
)

_VIEWS = (
    "{y}.t()", "{y}.transpose(0, -1)", "{y}.mT", "{y}.permute(*range({y}.dim() - 1, -1, -1))", "{y}[..., ::2]",
    "{y}[1:]", "{y}[..., 1:]", "{y}.unsqueeze(0)", "{y}.unsqueeze(-1)", "{y}.diagonal()", "{y}.transpose(0, 1)[1:]",
    "{y}.view(-1)", "{y}.narrow(-1, 0, 1)", "{y}.select(0, 0)", "{y}.flatten()", "{y}.movedim(0, -1)",
    "{y}.unbind(0)[0]", "{y}.chunk(2, -1)[0]", "{y}.squeeze(0)", "{y}.view_as({y})",
    "{y}.transpose(0, 1).unsqueeze(0)", "{y}.expand(2, *{y}.shape)", "{y}.mT[::2]",
)  # fmt: skip
WRITES = {
    "index_add_": "{v}.index_add_(0, torch.tensor([0]), torch.ones_like({v}[:1]))",
    "masked_fill_": "{v}.masked_fill_({v} > 0.1, 0.25)",
    "scatter_add_": "{v}.scatter_add_(0, torch.zeros({v}.shape, dtype=torch.int64), torch.ones_like({v}))",
    "scatter_": "{v}.scatter_(-1, torch.zeros({v}.shape, dtype=torch.int64)[..., :1], 0.5)",
    "index_copy_": "{v}.index_copy_(0, torch.tensor([0]), torch.ones_like({v}[:1]))",
    "index_fill_": "{v}.index_fill_(0, torch.tensor([0]), 0.5)",
    "index_put_": "{v}.index_put_((torch.tensor([0]),), torch.ones_like({v}[0]))",
    "cumsum_": "{v}.cumsum_(0)",
    "cumprod_": "{v}.cumprod_(-1)",
    "tril_": "{v}.tril_()",
    "triu_": "{v}.triu_(1)",
    "addmm_": "{v}.addmm_(torch.ones_like({v}), torch.ones({v}.shape[1], {v}.shape[1], dtype={v}.dtype))",
    "fill_diagonal_": "{v}.fill_diagonal_(0.5)",
    "addcmul_": "{v}.addcmul_(torch.ones_like({v}), torch.ones_like({v}), value=0.5)",
    "masked_scatter_": "{v}.masked_scatter_({v} > 0.1, torch.zeros_like({v}))",
    "lerp_": "{v}.lerp_(torch.ones_like({v}), 0.25)",
    "copy_": "{v}.copy_(torch.ones_like({v}) * 0.5)",
    "mul_": "{v}.mul_(0.5)",
    "clamp_": "{v}.clamp_(-0.2, 0.2)",
    "assignment": "{v}[:1] = 0.5",
    "assignment by mask": "{v}[{v} > 0.1] = 0.5",
}


def _write_through_a_view(operator: str, w: Writer, x: str) -> str | None:
    """Mutate a new tensor through a view, the first of several that accepts the operator; return it or another view."""
    if (
        not w[x].dim()
        or not w[x].numel()
        or not w.let(w.one_of(f"{x} * 1.5", f"{x}.clone()", f"{x}.t() * 1.5", f"{x}.mT + 1"))
    ):
        return None
    y, written = w.values[-1], False
    made = w.values.pop() if w.flag() and w.let(w.one_of(*_VIEWS).format(y=y)) else y
    for _ in range(4):
        view = w.one_of(*_VIEWS)
        if not w.let(view.format(y=y)):
            continue
        v = w.values.pop()
        if not w.run(WRITES[operator].format(v=v)):
            w.body.pop()
            continue
        written = True
        break
    return made if written else None


VIEWS = tuple(
    Recipe(
        f"in place through a view: {operator}",
        shapes=(*SQUARES, *ROWS, *TOKENS, *IMAGES),
        write=partial(_write_through_a_view, operator),
    )
    for operator in WRITES
)

RECIPES = (*KEYWORDS, *BUFFERS, *SHARED, *WEIGHTS, *VIEWS)
