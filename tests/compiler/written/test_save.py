"""Packages of code: what is written, that it loads the same module, and what is refused."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import graphwright.emitted
from compiler.emitted.graphmodule import EmittedModule
from compiler.written import save
from compiler.written.code import write_module
from compiler.written.layers import alike
from compiler.written.save import save_code
from graphwright import CodegenError, InputError, TransformResult, transform
from graphwright.quant import quantize


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return x + self.out(y)


class Net(nn.Module):
    table: torch.Tensor
    steps: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)
        )
        self.blocks = nn.ModuleList([Attention(), Attention()])
        self.head = nn.Linear(8, 5)
        self.tied = nn.Linear(8, 5, bias=False)
        self.tied.weight = self.head.weight
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.register_buffer("table", torch.randn(5), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor, *, extra: dict[str, torch.Tensor]) -> dict[str, Any]:
        self.steps += 1
        y = self.body(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            y = block(y)
        y = y.mean(1) * self.scale + extra["a"]
        return {"head": self.head(y) + self.table, "rest": (self.tied(y), y[..., None], self.steps.clone())}


Call = tuple[tuple[Any, ...], dict[str, Any]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("net", "other")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    return tmp_path


def written(model: nn.Module, **given: Any) -> tuple[ModuleType, Any]:
    save_code(model, "net")
    package = importlib.import_module("net")
    return package, package.load(**given)


@pytest.fixture(scope="module")
def result() -> tuple[TransformResult, Call]:
    torch.manual_seed(0)
    model = Net().eval()
    x, extra = torch.randn(2, 3, 9, 9), {"a": torch.randn(2, 8)}
    return transform(model, (x,), {"extra": extra}), ((x,), {"extra": extra})


def flat(outputs: Any) -> list[torch.Tensor]:
    return torch.utils._pytree.tree_leaves(outputs)


def assert_alike(one: nn.Module, other: nn.Module, call: Call) -> None:
    """The same bits from both, in both modes, and the same gradients; neither module is changed."""
    one, other = copy.deepcopy(one), copy.deepcopy(other)
    for mode in (False, True, False):
        for module in (one, other):
            module.train(mode)
        results = []
        for module in (one, other):
            torch.manual_seed(0)
            module.zero_grad()
            outputs = flat(module(*call[0], **call[1]))
            sum(t.sum() for t in outputs if t.is_floating_point()).backward()
            results.append([*outputs, *(p.grad for _, p in module.named_parameters()), *module.state_dict().values()])
        for a, b in zip(*results, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


def test_the_package_loads_a_module_that_does_the_same(result: tuple[TransformResult, Call]) -> None:
    model, call = result[0].model, result[1]
    package, loaded = written(model)
    assert package.__all__ == [type(loaded).__name__, "load"]
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert [(n, p.requires_grad) for n, p in loaded.named_parameters()] == [
        (n, p.requires_grad) for n, p in model.named_parameters()
    ]
    assert loaded.tied.linear.weight is loaded.head.linear.weight
    assert_alike(model, loaded, call)
    twin = copy.deepcopy(loaded)
    assert type(twin) is type(loaded) and twin.head is not loaded.head
    loaded.load_state_dict(model.state_dict())
    with pytest.raises(InputError, match=r"input `x` has shape \[2, 3, 8, 8\]"):
        loaded(torch.randn(2, 3, 8, 8), **call[1])


def test_the_code_reads_as_a_person_writes(result: tuple[TransformResult, Call]) -> None:
    written(result[0].model)
    code = Path("net/module.py").read_text()
    for line in ("nn.Conv2d(3, 8, (3, 3), stride=(2, 2), bias=False)", "bn=nn.BatchNorm2d(8)", "act=nn.ReLU()"):
        assert line in code
    # the blocks have one class
    assert code.count("class MHAInProjection(WrittenRegion):") == 1 and code.count("= MHAInProjection()") == 2
    assert "def forward(self, x, *, extra):" in code
    assert "compiler" not in code and "from graphwright.emitted import (" in code
    for name in Path("net").iterdir():
        assert name.name in ("__init__.py", "module.py", "weights.pt", "__pycache__")


def test_weights_are_read_without_running_code_and_may_be_given(result: tuple[TransformResult, Call]) -> None:
    package, loaded = written(result[0].model)
    tensors = torch.load("net/weights.pt", weights_only=True)
    doubled = {name: tensor.detach() * 2 for name, tensor in tensors.items()}
    assert torch.equal(package.load(weights=doubled).head.linear.bias, loaded.head.linear.bias * 2)
    del doubled["scale"]
    with pytest.raises(InputError, match="`scale` is missing"):
        package.load(weights=doubled)


def test_only_what_was_written_is_replaced(result: tuple[TransformResult, Call]) -> None:
    model = result[0].model
    Path("net").mkdir()
    save_code(model, "net")  # an empty folder
    (Path("net") / "__pycache__").mkdir(exist_ok=True)
    save_code(model, "net")
    assert sorted(each.name for each in Path().iterdir()) == ["net"]
    (Path("net") / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds other things than a package that graphwright wrote \(notes.txt\)"):
        save_code(model, "net")
    (Path("net") / "notes.txt").unlink()
    (Path("net") / "__init__.py").write_text("mine = 1")
    with pytest.raises(InputError, match="holds other things"):
        save_code(model, "net")
    assert (Path("net") / "__init__.py").read_text() == "mine = 1"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("net-code", "cannot import a package called 'net-code'\n  remedy: name the folder net_code"),
        ("1net", "name the folder net_1net"),
        ("class", "name the folder net_class"),
        ("net.py", "name the folder net"),
        ("no/net", "to write the package net to"),
    ],
)
def test_folders_that_cannot_be_a_package(result: tuple[TransformResult, Call], path: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        save_code(result[0].model, path)
    assert message in str(caught.value) and list(Path().iterdir()) == []


def test_a_file_is_no_folder_and_a_module_must_be_emitted(result: tuple[TransformResult, Call]) -> None:
    Path("net").write_text("x")
    with pytest.raises(InputError, match="net is a file"):
        save_code(result[0].model, "net")
    with pytest.raises(InputError, match="Linear is no emitted module"):
        save_code(nn.Linear(2, 2), "other")


def test_code_that_would_make_another_module_is_not_written(
    result: tuple[TransformResult, Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any) -> Any:
        made = write_module(*args)
        object.__setattr__(made, "code", made.code.replace("nn.BatchNorm2d(8)", "nn.BatchNorm2d(8, eps=0.1)"))
        return made

    monkeypatch.setattr(save, "write_module", wrong)
    with pytest.raises(CodegenError, match=r"the attribute 'eps' of `body\.0\.bn` is 0\.1, and was 1e-05"):
        save_code(result[0].model, "net")
    assert list(Path().iterdir()) == []


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight if x.sum() > 0 else -x


def _plain(model: nn.Module) -> tuple[Any, Call]:
    x = torch.randn(2, 4)
    return transform(model, (x,)).model, ((x,), {})


class Spelled(nn.Module):
    """Names that are no names of Python, a parameter that shadows `torch`, and a result of a class of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("1 µ", nn.Linear(4, 4))
        self.add_module("class", nn.Linear(4, 4))
        self.same = nn.Linear(4, 4)
        self.again = self.same

    def forward(self, torch: torch.Tensor) -> Pair:
        x = self._modules["class"](self._modules["1 µ"](torch))  # type: ignore[misc]
        return Pair(self.same(x).softmax(-1), self.again(x) / float("inf"))


def spelled() -> tuple[Any, Call]:
    return _plain(Spelled().eval())


def mixed_modes() -> tuple[Any, Call]:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    model[1].eval()
    return _plain(model)


def quantized() -> tuple[Any, Call]:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    x = torch.randn(8, 4)
    return quantize(transform(model, (x,), target="onnxruntime"), [x], bias_correction=None).model, ((x,), {})


def frozen_norm() -> tuple[Any, Call]:
    """A norm without a count of batches, whose weight is a buffer."""
    norm = nn.BatchNorm1d(4)
    weight = norm.weight.detach()
    del norm.weight
    norm.register_buffer("weight", weight)
    norm.num_batches_tracked = None
    return _plain(nn.Sequential(nn.Linear(4, 4), norm, nn.GELU(approximate="tanh")).eval())


class Named(nn.Module):
    """Modules, and a buffer, with names that emitted modules or the code of theirs have attributes of, or locals."""

    NAMES = (
        "start",
        "list_in_order",
        "self",
        "lock_mode",
        "_out_spec_text",
        "_weight_names",
        "_taken",
        "torch",
        "load",
    )
    INNER = ("self", "_switch", "_modes_after", "_modes_after_1")

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        for owner, names in ((self, self.NAMES), (self.inner, self.INNER)):
            for name in names:
                setattr(owner, name, nn.Linear(4, 4))
        self.register_buffer("refuse", torch.ones(4))

    def forward(self, x: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        for owner, names in ((self, self.NAMES), (self.inner, self.INNER)):
            for name in names:
                x = owner._modules[name](x).relu()  # type: ignore[misc]
        return x + self._buffers["refuse"] + more["more"]


def named() -> tuple[Any, Call]:
    x = torch.randn(2, 4)
    model = transform(Named().eval(), (x,), {"more": x}).model
    assert "start.linear.weight" in model.state_dict()  # the name of a function is free
    return model, ((x,), {"more": x})


class Defaults(nn.Module):
    def forward(
        self,
        x: torch.Tensor,
        k: float = float("nan"),
        c: complex = complex(float("-inf"), 1),
        several: tuple[float, ...] = (1.0, float("nan")),
    ) -> torch.Tensor:
        return x + 1


def not_finite() -> tuple[Any, Call]:
    return _plain(Defaults().eval())


def without_arguments() -> tuple[Any, Call]:
    """Layers whose `__init__` is that of `nn.Module`, alone and in a region."""
    return _plain(nn.Sequential(nn.Sigmoid(), nn.Linear(4, 4), nn.Tanh(), nn.LogSigmoid(), nn.Softsign()).eval())


@pytest.mark.parametrize("make", [spelled, mixed_modes, quantized, frozen_norm, named, not_finite, without_arguments])
def test_other_models(make: Callable[[], tuple[Any, Call]]) -> None:
    torch.manual_seed(0)
    model, call = make()
    _, loaded = written(model)
    assert [(path, each.training) for path, each in loaded.named_modules(remove_duplicate=False)] == [
        (path, each.training) for path, each in model.named_modules(remove_duplicate=False)
    ]
    outputs = []
    for module in (model, loaded):
        torch.manual_seed(0)
        outputs.append(flat(module(*call[0], **call[1])))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    copy.deepcopy(loaded)(*call[0], **call[1])


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (float("nan"), float("nan"), True),
        ((1.0, [float("nan")]), (1.0, [float("nan")]), True),
        (complex(float("nan"), 1), complex(float("nan"), 1), True),
        (complex(float("nan"), 1), complex(float("nan"), 2), False),
        ((1.0, float("nan")), (2.0, float("nan")), False),
        ({"a": float("nan")}, {"a": float("nan")}, True),
        ({"a": 1}, {"b": 1}, False),
        ((1,), (1.0,), False),
        ((1, 2), (1,), False),
    ],
)
def test_what_is_alike(a: Any, b: Any, same: bool) -> None:
    assert alike(a, b) is same


def test_opaque_modules_are_given() -> None:
    x = torch.randn(2, 4)
    opaque = Loop()
    model = transform(nn.Sequential(nn.Linear(4, 4), opaque).eval(), (x,), leaf_modules=["1"]).model
    package, loaded = written(model, opaques={"1": opaque})
    assert torch.equal(loaded(x), model(x)) and getattr(loaded, "1") is opaque
    assert "1.weight" not in torch.load("net/weights.pt", weights_only=True)
    with pytest.raises(TypeError, match="opaques"):
        package.load()


def test_a_function_that_cannot_be_imported_is_refused() -> None:
    x = torch.randn(2, 4)
    model: Any = transform(nn.Sequential(nn.Linear(4, 4)).eval(), (x,)).model
    assert isinstance(model, EmittedModule)
    relu = next(node for node in model.graph.nodes if node.op == "output")
    with model.graph.inserting_before(relu):
        node = model.graph.call_function(lambda y: y, (relu.args[0],))
    relu.args = (node,)
    model.recompile()
    with pytest.raises(CodegenError, match="cannot be written as code: it cannot be imported"):
        save_code(model, "net")
    assert list(Path().iterdir()) == []


def test_everything_that_code_may_name_is_in_the_window() -> None:
    used = {
        name
        for module in (save, *(m for n, m in sys.modules.items() if n.startswith("compiler.emitted.")))
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and name in graphwright.emitted.__all__
    }
    assert used | {"Surrounding"} == set(graphwright.emitted.__all__)
