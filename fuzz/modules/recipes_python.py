"""Recipes for what lies outside of a module: randomness, state, questions to the surroundings, caches, hooks, names."""

from __future__ import annotations

from fuzz.modules.recipes import IMAGES, Recipe, variants

RANDOMNESS = variants(
    "foreign randomness",
    {
        "random": {"define": "import random", "result": "$x * random.random()"},
        "choice": {"define": "import random", "result": "random.choice((torch.relu, torch.neg))($x)"},
        "branch": {"define": "import random", "result": "$x * 2 if random.random() < 0.5 else $x * 3"},
        "numpy": {"define": "import numpy as np", "result": "$x * float(np.random.rand())"},
        "numpy integer": {"define": "import numpy as np", "result": "$x * int(np.random.randint(1, 9))"},
        "global generator": {
            "define": "import numpy as np\nrng$n = np.random.default_rng(3)",
            "result": "$x * float(rng$n.random())",
        },
        "seed": {"body": "torch.manual_seed(0)", "result": "$x * torch.rand_like($x)"},
        "seed before a dropout": {"body": "torch.manual_seed(5)", "result": "F.dropout($x, 0.5, training=True)"},
        "fork": {"body": "with torch.random.fork_rng([]):\n    torch.manual_seed(1)\n    $y = $x + torch.rand(())"},
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
        "itertools.count": {
            "define": "import itertools",
            "setup": "self.steps$n = itertools.count(1)",
            "result": "$x * next(self.steps$n)",
        },
        "numpy array": {
            "define": "import numpy as np",
            "setup": "self.array$n = np.zeros(2)",
            "body": "self.array$n[0] += 1",
            "result": "$x * float(self.array$n[0])",
        },
        "RandomState": {
            "define": "import numpy as np",
            "setup": "self.noise$n = np.random.RandomState(3)",
            "result": "$x + float(self.noise$n.rand())",
        },
        "Random": {
            "define": "import random",
            "setup": "self.noise$n = random.Random(3)",
            "result": "$x + self.noise$n.random()",
        },
        "global dict": {
            "define": 'calls$n = {"count": 0}',
            "body": 'calls$n["count"] += 1',
            "result": '$x * calls$n["count"]',
        },
        "global tensor": {
            "define": "total$n = torch.zeros(())",
            "body": "total$n.add_(1)",
            "result": "$x * total$n.item()",
        },
        "closure": {
            "define": _COUNTER,
            "setup": "self.step$n = counter$n()",
            "result": "$x * self.step$n()",
        },
        "slots": {
            "define": 'class Slots$n:\n    __slots__ = ("count",)\n\n    def __init__(self):\n        self.count = 0',
            "setup": "self.slots$n = Slots$n()",
            "body": "self.slots$n.count += 1",
            "result": "$x * self.slots$n.count",
        },
        "object": {
            "define": "class Meter$n:\n    count = 0",
            "setup": "self.meter$n = Meter$n()",
            "body": "self.meter$n.count += 1",
            "result": "$x * self.meter$n.count",
        },
        "class": {
            "define": "class Shared$n:\n    count = 0",
            "body": "Shared$n.count += 1",
            "result": "$x * Shared$n.count",
        },
        "list": {"setup": "self.seen$n = []", "body": "self.seen$n.append(1)", "result": "$x * len(self.seen$n)"},
        "deque": {
            "define": "import collections",
            "setup": "self.last$n = collections.deque([0.5, 1.5, 2.5])",
            "body": "self.last$n.rotate(1)",
            "result": "$x * self.last$n[0]",
        },
        "the last input": {
            "setup": "self.last$n = None",
            "body": "$y = $x if self.last$n is None else $x - self.last$n\nself.last$n = $x.detach()",
        },
        "the largest so far": {
            "setup": "self.most$n = 0.0",
            "body": "self.most$n = max(self.most$n, float($x.detach().abs().sum()))",
            "result": "$x * self.most$n",
        },
        "a count that nothing reads": {
            "setup": "self.calls$n = 0",
            "body": "self.calls$n += 1",
            "result": "$x * 2 if self.calls$n < 9 else $x",
        },
        "list of tensors": {
            "setup": "self.kept$n = [torch.zeros(())]",
            "body": "self.kept$n[0] = self.kept$n[0] + 1",
            "result": "$x * self.kept$n[0]",
        },
        "default argument": {
            "define": (
                "class Memory$n(nn.Module):\n    def forward(self, x, calls=[]):\n"
                "        calls.append(1)\n        return x * len(calls)"
            ),
            "setup": "self.memory$n = Memory$n()",
            "result": "self.memory$n($x)",
        },
        "function": {
            "define": "def scale$n(x):\n    scale$n.calls += 1\n    return x * scale$n.calls\n\n\nscale$n.calls = 0",
            "result": "scale$n($x)",
        },
        "first call": {
            "setup": "self.first$n = True",
            "body": "$y = $x * 2 if self.first$n else $x * 3\nself.first$n = False",
        },
        "last value": {
            "setup": "self.last$n = None",
            "body": "$y = $x if self.last$n is None else $x + self.last$n\nself.last$n = $x.detach() * 0.5",
        },
        "counter": {
            "setup": "self.calls$n = 0",
            "body": "self.calls$n += 1",
            "result": "$x * self.calls$n",
        },
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
        {name: {"result": f"{one} if {question} else {other}"} for name, question in _QUESTIONS.items()},
        shapes=IMAGES,
        on_input=True,
    )


QUESTIONS = (
    *_questions("question that matters", "$x * 2", "$x * 3"),
    *_questions("idle question", "$x + $x", "$x * 2"),
    *variants(
        "question that matters",
        {"contiguous()": {"result": "$x if $x.is_contiguous() else $x.contiguous()"}},
        shapes=IMAGES,
        on_input=True,
    ),
    *variants(
        "idle question",
        {
            "checkpoint": {
                "define": "from torch.utils.checkpoint import checkpoint",
                "body": (
                    "if torch.is_grad_enabled():\n    $y = checkpoint(torch.sigmoid, $x, use_reentrant=False)\n"
                    "else:\n    $y = torch.sigmoid($x)"
                ),
            },
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
    return {**_WEIGHT, "body": f"with {', '.join(managers)}:\n    $y = $x * self.weight$n"}


def _decorated(decorator: str) -> dict[str, str]:
    return {
        "define": _DECORATED.format(decorator),
        "setup": "self.region$n = Region$n()",
        "result": "self.region$n($x)",
    }


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
        "part of a sum": {
            **_WEIGHT,
            "body": "with torch.no_grad():\n    part$n = $x * self.weight$n",
            "result": "part$n + $x * self.weight$n",
        },
        "forces": {
            "body": (
                "with torch.enable_grad():\n    place$n = $x.detach().requires_grad_()\n"
                "    ($y,) = torch.autograd.grad(place$n.pow(3).sum(), place$n)"
            )
        },
    },
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
        "lru_cache": {"define": "import functools\n" + _CACHE.format("lru_cache"), "result": "$x + table$n($last)"},
        "functools.cache": {"define": "import functools\n" + _CACHE.format("cache"), "result": "$x + table$n($last)"},
        "lru_cache by shape": {
            "define": "import functools\n" + _CACHE.format("lru_cache"),
            "result": "$x + table$n($x.shape[-1])",
        },
        "global dict": {"define": "tables$n = {}", "body": _BY_SIZE.format(where="tables$n")},
        "dict of the class": {
            "define": "class Tables$n:\n    known = {}",
            "body": _BY_SIZE.format(where="Tables$n.known"),
        },
        "dict of the module": {"setup": "self.tables$n = {}", "body": _BY_SIZE.format(where="self.tables$n")},
        "attribute": {
            "setup": "self.table$n = None",
            "body": "if self.table$n is None:\n    self.table$n = torch.arange($last) * 0.5",
            "result": "$x + self.table$n",
        },
        "list": {
            "define": "made$n = []",
            "body": "if not made$n:\n    made$n.append(torch.arange($last) * 0.5)",
            "result": "$x + made$n[0]",
        },
        "attention map": {"body": "self.map$n = $x.sigmoid()", "result": "$x * self.map$n"},
        "sizes": {"body": "self.size$n = $x.shape[-1]", "result": "$x * self.size$n"},
        "pyramid": {
            "body": "self.levels$n = [$x]\nself.levels$n.append($x * 2)",
            "result": "self.levels$n[0] + self.levels$n[1]",
        },
        "of weights": {
            "setup": "self.bias$n = nn.Parameter(torch.randn(5))\nself.tables$n = {}",
            "body": ("if $last not in self.tables$n:\n    self.tables$n[$last] = self.bias$n[torch.arange($last) % 5]"),
            "result": "$x + self.tables$n[$last]",
        },
    },
)


def _hooked(hook: str, define: str = "", register: str = "register_forward_hook") -> dict[str, str]:
    return {
        "define": define,
        "setup": f"self.hooked$n = nn.Linear($last, $last)\nself.hooked$n.{register}({hook})",
        "result": "self.hooked$n($x)",
    }


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
            "parametrization": {
                "define": "from torch.nn.utils import parametrizations",
                "setup": "self.hooked$n = parametrizations.weight_norm(nn.Linear($last, $last))",
                "result": "self.hooked$n($x)",
            },
        },
    ),
)

NAMES = variants(
    "names",
    {
        "modules": {
            "setup": (
                'self.add_module("\\u00b5", nn.Linear($last, $last))\n'
                'self.add_module("\\u03bc", nn.Linear($last, $last))'
            ),
            "result": 'getattr(self, "\\u00b5")($x) - 2 * getattr(self, "\\u03bc")($x)',
        },
        "buffers": {
            "setup": (
                'self.register_buffer("\\u00b5", torch.ones(()))\nself.register_buffer("\\u03bc", torch.ones(()))'
            ),
            "result": 'self._buffers["\\u00b5"] * $x - 2 * self._buffers["\\u03bc"]',
        },
    },
)

RECIPES = (*RANDOMNESS, *HIDDEN_STATE, *QUESTIONS, *GRAD_REGIONS, *CACHES, *HOOKS, *NAMES)
