"""Recipes for randomness, hidden state, questions to the surroundings, caches, hooks and names."""

from __future__ import annotations

from fuzz.modules.recipes import IMAGES, Recipe, of, variants

RANDOMNESS = variants(
    "foreign randomness",
    {
        "random": of("$x * random.random()", define="import random"),
        "choice": of("random.choice((torch.relu, torch.neg))($x)", define="import random"),
        "branch": of("$x * 2 if random.random() < 0.5 else $x * 3", define="import random"),
        "numpy": of("$x * float(np.random.rand())", define="import numpy as np"),
        "numpy integer": of("$x * int(np.random.randint(1, 9))", define="import numpy as np"),
        "global generator": of(
            "$x * float(rng$n.random())", define="import numpy as np\nrng$n = np.random.default_rng(3)"
        ),
        "seed": of("$x * torch.rand_like($x)", body="torch.manual_seed(0)"),
        "seed before a dropout": of("F.dropout($x, 0.5, training=True)", body="torch.manual_seed(5)"),
        "fork": of(body="with torch.random.fork_rng([]):\n    torch.manual_seed(1)\n    $y = $x + torch.rand(())"),
    },
)

_COUNTER = """
def counter$n():
    count = 0

    def step():
        nonlocal count
        count += 1
        return count

    return step
"""

HIDDEN_STATE = variants(
    "hidden state",
    {
        "itertools.count": of(
            "$x * next(self.steps$n)", setup="self.steps$n = itertools.count(1)", define="import itertools"
        ),
        "numpy array": of(
            "$x * float(self.array$n[0])",
            setup="self.array$n = np.zeros(2)",
            body="self.array$n[0] += 1",
            define="import numpy as np",
        ),
        "RandomState": of(
            "$x + float(self.noise$n.rand())",
            setup="self.noise$n = np.random.RandomState(3)",
            define="import numpy as np",
        ),
        "Random": of("$x + self.noise$n.random()", setup="self.noise$n = random.Random(3)", define="import random"),
        "global dict": of('$x * calls$n["count"]', body='calls$n["count"] += 1', define='calls$n = {"count": 0}'),
        "global tensor": of("$x * total$n.item()", body="total$n.add_(1)", define="total$n = torch.zeros(())"),
        "closure": of("$x * self.step$n()", setup="self.step$n = counter$n()", define=_COUNTER),
        "slots": of(
            "$x * self.slots$n.count",
            setup="self.slots$n = Slots$n()",
            body="self.slots$n.count += 1",
            define='class Slots$n:\n    __slots__ = ("count",)\n\n    def __init__(self):\n        self.count = 0',
        ),
        "object": of(
            "$x * self.meter$n.count",
            setup="self.meter$n = Meter$n()",
            body="self.meter$n.count += 1",
            define="class Meter$n:\n    count = 0",
        ),
        "class": of("$x * Shared$n.count", body="Shared$n.count += 1", define="class Shared$n:\n    count = 0"),
        "list": of("$x * len(self.seen$n)", setup="self.seen$n = []", body="self.seen$n.append(1)"),
        "deque": of(
            "$x * self.last$n[0]",
            setup="self.last$n = collections.deque([0.5, 1.5, 2.5])",
            body="self.last$n.rotate(1)",
            define="import collections",
        ),
        "the last input": of(
            setup="self.last$n = None",
            body="$y = $x if self.last$n is None else $x - self.last$n\nself.last$n = $x.detach()",
        ),
        "the largest so far": of(
            "$x * self.most$n",
            setup="self.most$n = 0.0",
            body="self.most$n = max(self.most$n, float($x.detach().abs().sum()))",
        ),
        "a count that nothing reads": of(
            "$x * 2 if self.calls$n < 9 else $x", setup="self.calls$n = 0", body="self.calls$n += 1"
        ),
        "list of tensors": of(
            "$x * self.kept$n[0]", setup="self.kept$n = [torch.zeros(())]", body="self.kept$n[0] = self.kept$n[0] + 1"
        ),
        "default argument": of(
            "self.memory$n($x)",
            setup="self.memory$n = Memory$n()",
            define="class Memory$n(nn.Module):\n    def forward(self, x, calls=[]):\n"
            "        calls.append(1)\n        return x * len(calls)",
        ),
        "function": of(
            "scale$n($x)",
            define="def scale$n(x):\n    scale$n.calls += 1\n    return x * scale$n.calls\n\n\nscale$n.calls = 0",
        ),
        "first call": of(
            setup="self.first$n = True", body="$y = $x * 2 if self.first$n else $x * 3\nself.first$n = False"
        ),
        "last value": of(
            setup="self.last$n = None",
            body="$y = $x if self.last$n is None else $x + self.last$n\nself.last$n = $x.detach() * 0.5",
        ),
        "counter": of("$x * self.calls$n", setup="self.calls$n = 0", body="self.calls$n += 1"),
    },
)

_QUESTIONS = {
    "is_grad_enabled": "torch.is_grad_enabled()",
    "requires_grad": "$x.requires_grad",
    "is_autocast_enabled": 'torch.is_autocast_enabled("cpu")',
    "is_inference_mode_enabled": "torch.is_inference_mode_enabled()",
    "is_contiguous": "$x.is_contiguous()",
    "stride": "$x.stride()[-1] == 1",
    "stride of the channels": "$x.stride(1) == 1",
    "is_contiguous in channels_last": "$x.is_contiguous(memory_format=torch.channels_last)",
    "is_compiling": "torch.compiler.is_compiling()",
    "is_exporting": "torch.compiler.is_exporting()",
}


def _questions(family: str, one: str, other: str) -> tuple[Recipe, ...]:
    return variants(
        family,
        {name: f"{one} if {question} else {other}" for name, question in _QUESTIONS.items()},
        shapes=IMAGES,
        on_input=True,
    )


QUESTIONS = (
    *_questions("question that matters", "$x * 2", "$x * 3"),
    *_questions("idle question", "$x + $x", "$x * 2"),
    *variants(
        "question that matters",
        {"contiguous()": of("$x if $x.is_contiguous() else $x.contiguous()")},
        shapes=IMAGES,
        on_input=True,
    ),
    *variants(
        "idle question",
        {
            "checkpoint": of(
                body="if torch.is_grad_enabled():\n    $y = checkpoint(torch.sigmoid, $x, use_reentrant=False)\n"
                "else:\n    $y = torch.sigmoid($x)",
                define="from torch.utils.checkpoint import checkpoint",
            ),
        },
        on_input=True,
    ),
)

_WEIGHT = {"setup": "self.weight$n = nn.Parameter(torch.randn(()))"}
_DECORATED = """
class Region$n(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(()))

    @{}
    def forward(self, x):
        return x * self.weight
"""


def _region(*managers: str) -> dict[str, str]:
    return of(body=f"with {', '.join(managers)}:\n    $y = $x * self.weight$n", **_WEIGHT)


def _decorated(decorator: str) -> dict[str, str]:
    return of("self.region$n($x)", setup="self.region$n = Region$n()", define=_DECORATED.format(decorator))


GRAD_REGIONS = variants(
    "grad region",
    {
        "enable_grad": _region("torch.enable_grad()"),
        "enable_grad under no_grad": _region("torch.no_grad()", "torch.enable_grad()"),
        "no_grad": _region("torch.no_grad()"),
        "set_grad_enabled": _region("torch.set_grad_enabled(False)"),
        "set_grad_enabled by the mode": _region("torch.set_grad_enabled(self.training)"),
        "no_grad as decorator": _decorated("torch.no_grad()"),
        "enable_grad as decorator": _decorated("torch.enable_grad()"),
        "part of a sum": of(
            "part$n + $x * self.weight$n", body="with torch.no_grad():\n    part$n = $x * self.weight$n", **_WEIGHT
        ),
        "forces": of(
            body="with torch.enable_grad():\n    place$n = $x.detach().requires_grad_()\n"
            "    ($y,) = torch.autograd.grad(place$n.pow(3).sum(), place$n)"
        ),
    },
)

_CALL = "Function$n.apply($x)"
_FUNCTION = """
class Function$n(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return {}

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return {}


apply$n = Function$n.apply
"""


def _function(forward: str, backward: str, call: str = "apply$n($x)") -> dict[str, str]:
    return of(call, define=_FUNCTION.format(forward, backward))


OWN_BACKWARDS = (
    *variants(
        "own derivative",
        {
            "bound": _function("torch.sin(x)", "gradient * torch.cos(x)"),
            "of the class": _function("x * x.sigmoid()", "gradient * x.sigmoid() * (1 + x - x * x.sigmoid())", _CALL),
            "in training": _function("x * 3", "gradient * 3", "apply$n($x) if self.training else $x * 3"),
        },
        ways=("export",),
    ),
    *variants(
        "own backward",
        {
            "straight through": _function("torch.round(x)", "gradient"),
            "reversed": _function("x.clone()", "-gradient", _CALL),
            "clipped": _function("x * 2", "(gradient * 2).clamp(-3, 3)"),
        },
        ways=("export",),
    ),
)

_CACHE = """
@functools.{}
def table$n(size):
    return torch.arange(size) * 0.5
"""
_BY_SIZE = (
    "if $x.shape[-1] not in {where}:\n    {where}[$x.shape[-1]] = torch.arange($x.shape[-1]) * 0.5\n"
    "$y = $x + {where}[$x.shape[-1]]"
)

CACHES = variants(
    "cache",
    {
        "lru_cache": of("$x + table$n($last)", define="import functools\n" + _CACHE.format("lru_cache")),
        "functools.cache": of("$x + table$n($last)", define="import functools\n" + _CACHE.format("cache")),
        "lru_cache by shape": of(
            "$x + table$n($x.shape[-1])", define="import functools\n" + _CACHE.format("lru_cache")
        ),
        "global dict": of(body=_BY_SIZE.format(where="tables$n"), define="tables$n = {}"),
        "dict of the class": of(body=_BY_SIZE.format(where="Tables$n.known"), define="class Tables$n:\n    known = {}"),
        "dict of the module": of(setup="self.tables$n = {}", body=_BY_SIZE.format(where="self.tables$n")),
        "attribute": of(
            "$x + self.table$n",
            setup="self.table$n = None",
            body="if self.table$n is None:\n    self.table$n = torch.arange($last) * 0.5",
        ),
        "list": of(
            "$x + made$n[0]", body="if not made$n:\n    made$n.append(torch.arange($last) * 0.5)", define="made$n = []"
        ),
        "attention map": of("$x * self.map$n", body="self.map$n = $x.sigmoid()"),
        "sizes": of("$x * self.size$n", body="self.size$n = $x.shape[-1]"),
        "pyramid": of("self.levels$n[0] + self.levels$n[1]", body="self.levels$n = [$x]\nself.levels$n.append($x * 2)"),
        "of weights": of(
            "$x + self.tables$n[$last]",
            setup="self.bias$n = nn.Parameter(torch.randn(5))\nself.tables$n = {}",
            body="if $last not in self.tables$n:\n    self.tables$n[$last] = self.bias$n[torch.arange($last) % 5]",
        ),
    },
)


def _hooked(hook: str, define: str = "", register: str = "register_forward_hook") -> dict[str, str]:
    return of(
        "self.hooked$n($x)",
        setup=f"self.hooked$n = nn.Linear($last, $last)\nself.hooked$n.{register}({hook})",
        define=define,
    )


_COUNTING = """
counted$n = {"calls": 0}


def count$n(module, args, output):
    counted$n["calls"] += 1
"""

HOOKS = (
    *variants(
        "hook with effects",
        {
            "list": _hooked("lambda m, args, out: seen$n.append(out.detach())", "seen$n = []"),
            "list of inputs": _hooked(
                "lambda m, args: seen$n.append(args[0])", "seen$n = []", "register_forward_pre_hook"
            ),
            "dict": _hooked(
                'lambda m, args, out: kept$n.update(last=out, calls=kept$n["calls"] + 1)', 'kept$n = {"calls": 0}'
            ),
            "count": _hooked("count$n", _COUNTING),
        },
    ),
    *variants(
        "pure hook",
        {
            "output": _hooked("lambda m, args, out: out * 2"),
            "input": _hooked("lambda m, args: (args[0] + 1,)", register="register_forward_pre_hook"),
            "nothing": _hooked("lambda m, args, out: None"),
            "parametrization": of(
                "self.hooked$n($x)",
                setup="self.hooked$n = parametrizations.weight_norm(nn.Linear($last, $last))",
                define="from torch.nn.utils import parametrizations",
            ),
        },
    ),
)


def _modules_called(*names: str, add: str = "self.add_module({!r}, {})") -> dict[str, str]:
    """Return the fields of a variant with layers of these names, each called on the result of the one before."""
    result = "$x"
    for name in names:
        result = f"self._modules[{name!r}]({result})"
    return of(result, setup="\n".join(add.format(name, "nn.Linear($last, $last)") for name in names))


NAMES = variants(
    "names",
    {
        "modules": of(
            'getattr(self, "\\u00b5")($x) - 2 * getattr(self, "\\u03bc")($x)',
            setup='self.add_module("\\u00b5", nn.Linear($last, $last))\n'
            'self.add_module("\\u03bc", nn.Linear($last, $last))',
        ),
        "buffers": of(
            'self._buffers["\\u00b5"] * $x - 2 * self._buffers["\\u03bc"]',
            setup='self.register_buffer("\\u00b5", torch.ones(()))\nself.register_buffer("\\u03bc", torch.ones(()))',
        ),
        "methods": _modules_called("forward", "eval", add="self._modules[{!r}] = {}"),
    },
)


def _tensors_called(*names: str) -> dict[str, str]:
    made = "\n".join(
        f"self.register_buffer({name!r}, torch.full((), 0.5))\n"
        f"self.register_parameter({name + '_'!r}, nn.Parameter(torch.full((), 2.0)))"
        for name in names
    )
    uses = "".join(f" * getattr(self, {name!r}) + getattr(self, {name + '_'!r})" for name in names)
    return of(f"$x{uses}", setup=made)


RESERVED_NAMES = variants(
    "reserved names",
    {
        "of the language": _modules_called("class", "lambda", "None", "print"),
        "of what forward reads": _modules_called("self", "x", "torch", "v1", "inf"),
        "of graphs": _modules_called("start", "graph", "code", "meta", "recompile", "print_readable"),
        "of ours": _modules_called("_taken", "program", "guards", "container"),
        "tensors": _tensors_called("class", "self", "start", "graph", "_guard"),
        "in a container": of(
            'self.parts$n["self"](self.parts$n["start"](self.parts$n["class"]($x)))',
            setup='self.parts$n = nn.ModuleDict({k: nn.Linear($last, $last) for k in ("class", "start", "self")})',
        ),
    },
    ways=("export",),
)

RECIPES = (
    *RANDOMNESS,
    *HIDDEN_STATE,
    *QUESTIONS,
    *GRAD_REGIONS,
    *OWN_BACKWARDS,
    *CACHES,
    *HOOKS,
    *NAMES,
    *RESERVED_NAMES,
)
