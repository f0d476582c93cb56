"""Recipes for layers that override their class, for modes, and for calls of `forward` itself."""

from __future__ import annotations

from fuzz.modules.recipes import IMAGES, MAPS, TOKENS, Recipe, of, variants

_DROPOUT = """
class Own$n(nn.Dropout):
    def forward(self, x):
        return {}
"""
_NORM = """
class Own$n(nn.BatchNorm$d):
    def forward(self, x):
        return {}
"""
_OTHER = """
class Own$n({}):
    def forward(self, x):
        return {}
"""
_STATISTICS = "x, self.running_mean, self.running_var, self.weight, self.bias"


def _own(define: str, arguments: str) -> dict[str, str]:
    return of("self.own$n($x)", setup=f"self.own$n = Own$n({arguments})", define=define)


OWN_LAYERS = (
    *variants(
        "own layer",
        {
            "dropout that is always on": _own(_DROPOUT.format("F.dropout(x, self.p, training=True)"), "0.5"),
            "dropout that is always off": _own(_DROPOUT.format("F.dropout(x, self.p, training=False)"), "0.5"),
            "dropout that is on in eval": _own(_DROPOUT.format("F.dropout(x, self.p, not self.training)"), "0.5"),
            "dropout that scales": _own(_DROPOUT.format("super().forward(x) * 2"), "0.5"),
            "activation": _own(_OTHER.format("nn.ReLU", "F.leaky_relu(x, 0.3)"), ""),
            "linear": _own(_OTHER.format("nn.Linear", "F.linear(x, self.weight * 2, self.bias)"), "$last, 3"),
            "layer norm": _own(_OTHER.format("nn.LayerNorm", "super().forward(x) + 1"), "$last"),
            "random relu": _own(_OTHER.format("nn.RReLU", "F.rrelu(x, 0.1, 0.3, True)"), ""),
        },
    ),
    *variants(
        "own layer",
        {
            "dropout of channels that is always on": _own(
                "class Own$n(nn.Dropout2d):\n    def forward(self, x):\n        return F.dropout2d(x, self.p, True)",
                "0.5",
            ),
        },
        shapes=IMAGES,
    ),
    *variants(
        "own layer",
        {
            "batch norm that is frozen": _own(
                _NORM.format(f"F.batch_norm({_STATISTICS}, False, self.momentum, self.eps)"), "$c"
            ),
            "batch norm that is always in training": _own(
                _NORM.format(f"F.batch_norm({_STATISTICS}, True, self.momentum, self.eps)"), "$c"
            ),
            "batch norm on batch statistics": _own(
                _NORM.format("F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)"), "$c"
            ),
            "batch norm of another momentum": _own(
                _NORM.format(f"F.batch_norm({_STATISTICS}, self.training, 0.5, self.eps)"), "$c"
            ),
            "batch norm that scales": _own(_NORM.format("super().forward(x) * 2"), "$c"),
        },
        shapes=MAPS,
    ),
)

_BACKBONE = """
class Backbone$n(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm$d($c)
        self.drop = nn.Dropout(0.5)

    def train(self, mode=True):
        {}
        return self

    def forward(self, x):
        return self.drop(self.norm(x))
"""


def _backbone(train: str) -> dict[str, str]:
    return of("self.backbone$n($x)", setup="self.backbone$n = Backbone$n()", define=_BACKBONE.format(train))


MODES = variants(
    "overridden mode",
    {
        "batch norm stays in eval": _backbone("super().train(mode)\n        self.norm.eval()"),
        "batch norm stays in training": _backbone("super().train(mode)\n        self.norm.train()"),
        "dropout stays on": _backbone("super().train(mode)\n        self.drop.train()"),
        "dropout stays off": _backbone("super().train(mode)\n        self.drop.training = False"),
        "no switch": _backbone("self.training = False"),
        "of the root": of(
            "self.norm$n($x)",
            setup="self.norm$n = nn.BatchNorm$d($c)",
            method="def train(self, mode=True):\n    super().train(mode)\n    self.norm$n.eval()\n    return self",
        ),
        "eval of the root": of(
            "self.drop$n($x)",
            setup="self.drop$n = nn.Dropout(0.5)",
            method="def eval(self):\n    super().eval()\n    self.drop$n.train()\n    return self",
        ),
        "eval() in forward": of("self.norm$n($x)", setup="self.norm$n = nn.BatchNorm$d($c)", body="self.norm$n.eval()"),
        "train() in forward": of("self.drop$n($x)", setup="self.drop$n = nn.Dropout(0.5)", body="self.drop$n.train()"),
        "mode of another": of("$x * 2 if self.norm$n.training else $x * 3", setup="self.norm$n = nn.BatchNorm$d($c)"),
    },
    shapes=MAPS,
)

_SUB = """
class Sub$n(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm$d($c)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(x))
"""


def _norm(result: str, **more: str) -> dict[str, str]:
    return of(result, setup="self.norm$n = nn.BatchNorm$d($c)", **more)


def _drop(result: str, **more: str) -> dict[str, str]:
    return of(result, setup="self.drop$n = nn.Dropout(0.5)", **more)


CALLS = variants(
    "forward without call",
    {
        "batch norm": _norm("self.norm$n.forward($x)"),
        "batch norm by its class": _norm("nn.BatchNorm$d.forward(self.norm$n, $x)"),
        "batch norm by its type": _norm("type(self.norm$n).forward(self.norm$n, $x)"),
        "batch norm by a method": _norm("call$n($x)", body="call$n = self.norm$n.forward"),
        "dropout": _drop("self.drop$n.forward($x)"),
        "dropout by its class": _drop("nn.Dropout.forward(self.drop$n, $x)"),
        "block": of("self.sub$n.forward($x)", setup="self.sub$n = Sub$n()", define=_SUB),
        "layers of a block": of(
            "self.sub$n.drop.forward(self.sub$n.norm.forward($x))", setup="self.sub$n = Sub$n()", define=_SUB
        ),
    },
    shapes=MAPS,
)

_PROGRAMS = ("exported", "decomposed")

ASKED_MODES = (
    *variants(
        "asked mode",
        {
            "if self.training": "$x * 2 if self.training else $x * 3",
            "F.dropout": "F.dropout($x, 0.5, training=self.training)",
            "dropout": _drop("self.drop$n($x)"),
            "random relu": of("self.act$n($x)", setup="self.act$n = nn.RReLU()"),
            "F.dropout that is on": "F.dropout($x, 0.5, training=True)",
        },
        ways=_PROGRAMS,
    ),
    *variants(
        "asked mode",
        {
            "batch norm": _norm("self.norm$n($x)"),
            "batch norm of one's own": _own(_NORM.format("super().forward(x)"), "$c"),
        },
        ways=_PROGRAMS,
        shapes=MAPS,
    ),
    *variants(
        "asked mode",
        {
            "LSTM": of(
                "self.lstm$n($x)[0]",
                setup="self.lstm$n = nn.LSTM($last, 4, num_layers=2, dropout=0.5, batch_first=True)",
            ),
            "attention": of(
                "self.attention$n($x, $x, $x, need_weights=False)[0]",
                setup="self.attention$n = nn.MultiheadAttention($last, 1, dropout=0.5, batch_first=True)",
            ),
            "scaled dot product": "F.scaled_dot_product_attention($x, $x, $x, dropout_p=0.5 if self.training else 0.0)",
        },
        ways=_PROGRAMS,
        shapes=TOKENS,
    ),
)

LAYERS_OF_ONE_OPERATOR = (
    *variants(
        "asked mode", {"random relu, traced": of("self.act$n($x)", setup="self.act$n = nn.RReLU()")}, ways=("export",)
    ),
    *variants(
        "asked mode",
        {
            "LSTM, traced": of(
                "self.lstm$n($x)[0]", setup="self.lstm$n = nn.LSTM($last, 4, num_layers=2, dropout=0.5)"
            ),
            "GRU, traced": of(
                "self.gru$n($x)[0]", setup="self.gru$n = nn.GRU($last, 4, 2, dropout=0.5, bidirectional=True)"
            ),
        },
        ways=("export",),
        shapes=TOKENS,
    ),
    *variants(
        "asked mode",
        {
            "tracking norm, traced": of(
                "self.norm$n($x)", setup="self.norm$n = nn.InstanceNorm$d($c, track_running_stats=True)"
            ),
        },
        ways=("export",),
        shapes=IMAGES,
    ),
)

_STATE = "{**dict(self.norm$n.named_parameters()), **dict(self.norm$n.named_buffers())}"

BATCH_NORMS = (
    *(
        Recipe(f"batch norm elsewhere: {name}", base=base, shapes=shapes)
        for name, base, shapes in (
            ("the root", "nn.BatchNorm2d(3)", ((2, 3, 4, 4),)),
            ("the root, cumulative", "nn.BatchNorm2d(3, momentum=None)", ((2, 3, 4, 4),)),
            ("the root, of rows", "nn.BatchNorm1d(3)", ((4, 3),)),
        )
    ),
    *variants(
        "batch norm elsewhere",
        {
            "under no_grad": _norm("", body="with torch.no_grad():\n    $y = self.norm$n($x)"),
            "cumulative, under no_grad": of(
                setup="self.norm$n = nn.BatchNorm$d($c, momentum=None)",
                body="with torch.no_grad():\n    $y = self.norm$n($x)",
            ),
            "in a block under no_grad": of(
                "self.sub$n($x)",
                setup="self.sub$n = Sub$n()",
                define=_SUB.replace("    def forward", "    @torch.no_grad()\n    def forward"),
            ),
            "functional_call": _norm(f"torch.func.functional_call(self.norm$n, {_STATE}, ($x,))"),
            "functional_call with parameters": _norm(
                "torch.func.functional_call(self.norm$n, dict(self.norm$n.named_parameters()), ($x,))"
            ),
            "cumulative, functional_call": of(
                f"torch.func.functional_call(self.norm$n, {_STATE}, ($x,))",
                setup="self.norm$n = nn.BatchNorm$d($c, momentum=None)",
            ),
            "functional_call of a block": of(
                'torch.func.functional_call(self.sub$n, {"norm.weight": self.sub$n.norm.weight * 2}, ($x,))',
                setup="self.sub$n = Sub$n()",
                define=_SUB,
            ),
            "functional_call of a dropout": _drop("torch.func.functional_call(self.drop$n, {}, ($x,))"),
        },
        shapes=MAPS,
    ),
)

RECIPES = (*OWN_LAYERS, *MODES, *CALLS, *ASKED_MODES, *LAYERS_OF_ONE_OPERATOR, *BATCH_NORMS)
