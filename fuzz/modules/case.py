"""A case that is a module: the source text of its class, with inputs and modes. It can be built, run and saved."""

from __future__ import annotations

import atexit
import hashlib
import inspect
import linecache
import shutil
import sys
import tempfile
import textwrap
import types
import warnings
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from ir.caches import cached

HEADER = "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n"

WAYS = ("export", "fx")
"""The captures of a module."""

SPECIAL = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0)
"""Special values, which occur among ordinary ones."""


@attrs.frozen
class InputSpec:
    """An input of a module: how to make its tensor."""

    name: str
    """The name of the argument."""
    shape: tuple[int, ...]
    """The shape; rank 0 to 5, sizes may be 0."""
    dtype: torch.dtype = torch.float32
    """Floats are normally distributed, others are 0 or 1."""
    channels_last: bool = False
    """Whether a tensor of rank 4 is in channels_last."""
    special: bool = False
    """Whether special values occur."""
    seed: int = 0
    """Seeds the values."""
    same_as: str | None = None
    """The name of an earlier input that is the same object."""
    keyword: bool = False
    """Whether it is passed by name."""

    def build(self, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """Return the tensor, of another shape if one is given."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = self.shape if shape is None else shape
        if not self.dtype.is_floating_point:
            return torch.randint(0, 2, shape, generator=generator).to(self.dtype)
        tensor = torch.randn(shape, generator=generator)
        if self.special:
            which = torch.randint(0, 4 * len(SPECIAL), shape, generator=generator)
            for i, value in enumerate(SPECIAL):
                tensor = torch.where(which == i, value, tensor)
        tensor = tensor.to(self.dtype)
        return tensor.contiguous(memory_format=torch.channels_last) if self.channels_last else tensor


@attrs.frozen
class ModuleCase:
    """The subject of a check: a module, and the inputs of its calls."""

    module: str | type[nn.Module]
    """A class whose constructor takes no arguments; or Python source with imports and the class `Net`."""
    inputs: tuple[InputSpec, ...]
    """The arguments in their order."""
    seed: int = 0
    """Seeds weights and statistics."""
    dtype: torch.dtype = torch.float32
    """The dtype of the module's floats."""
    training: bool = False
    """The mode of the module."""
    modes: tuple[tuple[str, bool], ...] = ()
    """(path of a submodule, its mode) where it differs."""
    dynamic: tuple[tuple[str, int], ...] = ()
    """(name of an argument, dimension) of sizes that `torch.export` may keep symbolic."""
    ways: tuple[str, ...] = WAYS
    """The captures: "export" (the module itself), "fx" (its trace by `torch.fx.symbolic_trace`), "exported" (its
    `ExportedProgram`), "decomposed" (the same after `run_decompositions`)."""
    kind: str = ""
    """Its kind of Python around the graph, as `family: variant`; `fuzz.modules.kinds` says what is wanted."""

    @property
    def source(self) -> str:
        """The source of the module's class, without imports."""
        text = self.module if isinstance(self.module, str) else textwrap.dedent(inspect.getsource(self.module))
        return text.removeprefix(HEADER).strip()

    @property
    def dynamic_shapes(self) -> dict[str, Any] | None:
        """The argument of `torch.export.export`; None if all sizes are static."""
        if not self.dynamic:
            return None
        return {
            spec.name: {d: torch.export.Dim.AUTO for name, d in self.dynamic if name == spec.name} or None
            for spec in self.inputs
        }

    def arguments(self, sizes: dict[tuple[str, int], int] | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return new positional and keyword arguments, where some (name of an argument, dimension) have other sizes."""
        made: dict[str, torch.Tensor] = {}
        for spec in self.inputs:
            if spec.same_as is not None:
                made[spec.name] = made[spec.same_as]
                continue
            shape = tuple((sizes or {}).get((spec.name, d), size) for d, size in enumerate(spec.shape))
            made[spec.name] = spec.build(shape)
        positional = tuple(made[spec.name] for spec in self.inputs if not spec.keyword)
        return positional, {spec.name: made[spec.name] for spec in self.inputs if spec.keyword}

    def build(self) -> nn.Module:
        """Return a new module with its weights and modes."""
        made = load(self.module).Net if isinstance(self.module, str) else self.module
        kept = torch.random.get_rng_state()  # layers draw their first weights
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about weights without elements
                module: nn.Module = made()
        finally:
            torch.random.set_rng_state(kept)
        module.to(self.dtype)
        randomize(module, self.seed)
        module.train(self.training)
        for path, mode in self.modes:
            module.get_submodule(path).train(mode)
        return module

    def renew(self) -> None:
        """Forget the state of a module's source outside of the module: the next one that is built starts afresh."""
        if isinstance(self.module, str):
            _forget(_name(self.module))

    @property
    def program(self) -> str:
        """The text that identifies the case."""
        return self.source

    def code(self) -> str:
        """Return a Python expression for the case, where its class is defined."""
        specs = "".join(f"        {_fields(spec)},\n" for spec in self.inputs)
        options = "".join(
            f"    {field.name}={getattr(self, field.name)!r},\n"
            for field in attrs.fields(ModuleCase)[2:]
            if getattr(self, field.name) != field.default
        )
        name = "Net" if isinstance(self.module, str) else self.module.__name__
        return f"ModuleCase(\n    {name},\n    (\n{specs}    ),\n{options})"


def _fields(spec: InputSpec) -> str:
    fields = attrs.fields(InputSpec)
    first = [repr(getattr(spec, field.name)) for field in fields[:2]]
    options = [f"{f.name}={value!r}" for f in fields[2:] if (value := getattr(spec, f.name)) != f.default]
    return f"InputSpec({', '.join([*first, *options])})"


def load(source: str) -> types.ModuleType:
    """Return a source text as a Python module, in a file for tracebacks, `inspect`, errors and pickle."""
    name = _name(source)
    if name in sys.modules:
        return sys.modules[name]
    path = _folder() / f"{name}.py"
    path.write_text(source, encoding="utf-8")
    filename = str(path)
    module = types.ModuleType(name)
    module.__file__ = filename
    exec(compile(source, filename, "exec"), module.__dict__)
    sys.modules[name] = module
    return module


def forget_loaded() -> None:
    """Forget the modules that `load` made, of which a campaign draws many."""
    for name in [name for name in sys.modules if name.startswith("fuzz_module_")]:
        _forget(name)


def _forget(name: str) -> None:
    sys.modules.pop(name, None)
    path = _folder() / f"{name}.py"
    linecache.cache.pop(str(path), None)
    path.unlink(missing_ok=True)


@cached()
def _folder() -> Path:
    """Return the folder of this process's modules, which is removed at exit."""
    folder = tempfile.mkdtemp(prefix="fuzz_modules_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _name(source: str) -> str:
    return f"fuzz_module_{hashlib.sha256(source.encode()).hexdigest()[:16]}"


def randomize(module: nn.Module, seed: int) -> None:
    """Give all weights and statistics random values: positive variances, scales of either sign, some zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                continue
            spread = 1.0 if tensor.dim() < 2 else max(1, tensor.numel() // max(1, tensor.shape[0])) ** -0.5
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)
            if tensor.dim() == 1 and tensor.numel() > 1 and seed % 2:
                tensor[0] = 0.0
