"""An emitted module as a package of Python: code that a person can read, and a file of weights."""

from __future__ import annotations

import ast
import keyword
import textwrap
from collections.abc import Sequence

import attrs
import torch
from torch import nn

from compiler.emitted import fused
from compiler.emitted.forward_code import attribute, is_plain_name
from compiler.emitted.fused import FusedModule, fused_class
from compiler.emitted.graphmodule import (
    Container,
    EmittedModule,
    SwitchedLayer,
    SwitchedModule,
    TreeGraphModule,
    with_switches,
)
from compiler.emitted.guard import InputGuard
from compiler.emitted.written import WrittenModule, WrittenRegion, hold, list_in_order, load_tensors, start
from compiler.written.layers import held, layer_call
from compiler.written.literals import Imports, literal, quoted
from ir.errors import CodegenError
from ir.text.specs import format_spec

WEIGHTS = "weights.pt"
_FX_NAMES = ("fx_pytree", "pytree", "NoneType")
_NAMES_OF_LOAD = ("Path", "WEIGHTS", "load", "Any", "Mapping")


@attrs.frozen
class Written:
    """The code of a module.

    Attributes:
        code: the text of the file.
        name: the name of the root's class.
        kept: paths of opaque modules, which are given when the module is made.
    """

    code: str
    name: str
    kept: tuple[str, ...] = ()


def write_module(module: EmittedModule, kept: Sequence[str], title: str) -> Written:
    """Return the code of an emitted module.

    Args:
        module: the module.
        kept: paths of opaque modules in it.
        title: the first line of the file's docstring.

    Raises:
        CodegenError: when a part of it cannot be written as code.
    """
    return _Writer(module, tuple(kept)).write(title)


class _Writer:
    def __init__(self, module: EmittedModule, kept: tuple[str, ...]) -> None:
        self.module = module
        self.kept = kept
        self.imports = Imports()
        self.imports.module("torch", "torch")
        self.classes: dict[str, str] = {}
        """Code of a class without its name -> the name."""
        self.bodies: list[str] = []

    def write(self, title: str) -> Written:
        module = self.module
        name = self._root_name()
        lines = self._lines(module, "")
        lines += self._state(module)
        opaque = ", opaques: Mapping[str, nn.Module]" if self.kept else ""
        spec = vars(module).get("_out_spec")
        head = [f'    _out_spec_text = "{_escaped(format_spec(spec))}"\n'] if spec is not None else []
        base = self.imports.of(WrittenModule)
        root = f"class {name}({base}):\n" + "".join(head)
        root += f"    def __init__(self{opaque}) -> None:\n        super().__init__()\n"
        root += textwrap.indent("\n".join(lines), " " * 8) + "\n\n" + self._forward(module)
        load = self._load(name)
        twice = {name, *self.classes.values()} & self.imports.names.keys()
        if twice:
            raise CodegenError(f"two things would be called {min(twice)!r} in the code of the module")
        if self.kept:
            self.imports.module("nn", "torch.nn")
            self.imports.names["Mapping"] = ("collections.abc", "Mapping")
        text = "\n".join(
            [
                f'"""{title}\n\n{_ABOUT}"""\n',
                "from __future__ import annotations\n",
                *self.imports.lines(),
                f'\nWEIGHTS = Path(__file__).with_name("{WEIGHTS}")\n',
                *(f"\n{body}" for body in self.bodies),
                f"\n{root}",
                f"\n{load}",
            ]
        )
        return Written(text, name, self.kept)

    def _root_name(self) -> str:
        name = self.module._class_name
        if not name.isidentifier() or keyword.iskeyword(name) or name in (*_NAMES_OF_LOAD, "torch", "nn", "hold"):
            name = "Emitted"
        return name if name not in vars(nn) and not hasattr(torch, name) else f"{name}Model"

    def _load(self, name: str) -> str:
        self.imports.of(load_tensors)
        self.imports.names.update({"Path": ("pathlib", "Path"), "Any": ("typing", "Any")})
        opaque = "opaques: Mapping[str, nn.Module], *, " if self.kept else "*, "
        given, kept = ("opaques", f", kept={literal(self.kept, self.imports)}") if self.kept else ("", "")
        about = ""
        if self.kept:
            about = f"\n\n    `opaques` has the modules at {', '.join(self.kept)}, which are not written.\n    "
        return (
            f"def load({opaque}weights: Any = WEIGHTS, map_location: Any = None) -> {name}:\n"
            f'    """Return the module with its weights: those of the file beside this one.{about}"""\n'
            f'    with torch.device("meta"):\n        module = {name}({given})\n'
            f"    load_tensors(module, weights, map_location=map_location{kept})\n"
            "    return module\n"
        )

    # ---- the tree ----

    def _lines(self, module: nn.Module, prefix: str) -> list[str]:
        """Return the statements that make what is in a module of which `self` is the root."""
        seen: dict[int, str] = {id(module): ""}
        lines: list[str] = []
        self._fill(module, "", prefix, seen, lines)
        return lines

    def _fill(self, module: nn.Module, path: str, prefix: str, seen: dict[int, str], lines: list[str]) -> None:
        self._tensors(module, path, lines)
        for name, child in module._modules.items():
            inner = f"{path}.{name}" if path else name
            if child is None:
                raise CodegenError(f"`{prefix}{inner}` is registered as no module, which cannot be written as code")
            if id(child) in seen:
                lines.append(_assigned(path, name, attribute("self", seen[id(child)])))
                continue
            seen[id(child)] = inner
            after: list[str] = []
            lines.append(_assigned(path, name, self._call(child, inner, prefix, seen, after)))
            lines += after

    def _call(self, module: nn.Module, path: str, prefix: str, seen: dict[int, str], after: list[str]) -> str:
        """Return the expression that makes a module; statements that follow it are added to `after`."""
        whole = f"{prefix}{path}"
        if whole in self.kept:
            return f"opaques[{quoted(whole)}]"
        if isinstance(module, Container):
            call = f"{self.imports.of(Container)}()"
            self._fill(module, path, prefix, seen, after)
            return call
        if isinstance(module, InputGuard):
            return self._guard(module, path, after)
        if isinstance(module, TreeGraphModule):
            return f"{self._region(module, whole)}()"
        if isinstance(module, FusedModule):
            return self._fused(module, path, prefix, seen, after)
        call, made = layer_call(module, whole, self.imports)
        self._rearranged(module, made, path, after)
        if isinstance(module, SwitchedLayer):
            after.append(f"{self.imports.of(with_switches)}({attribute('self', path)})")
        return call

    def _fused(
        self,
        module: FusedModule,
        path: str,
        prefix: str,
        seen: dict[int, str],
        after: list[str],
    ) -> str:
        name = self._fused_name(module)
        parts = []
        for part, child in module._modules.items():
            assert child is not None
            inner = f"{path}.{part}"
            if id(child) in seen:
                parts.append(f"{part}={attribute('self', seen[id(child)])}")
                continue
            seen[id(child)] = inner
            parts.append(f"{part}={self._call(child, inner, prefix, seen, after)}")
        call = f"{name}({', '.join(parts)})"
        if len(call) > 100:
            call = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + ")"
        return call

    def _fused_name(self, module: FusedModule) -> str:
        class_ = type(module)
        if getattr(fused, class_.__name__, None) is class_:
            return self.imports.of(class_)
        return f"{self.imports.of(fused_class)}({quoted(module.kind)})"  # the class of a user's kind is made on demand

    def _tensors(self, module: nn.Module, path: str, lines: list[str]) -> None:
        """Register the tensors that a module without a class of its own holds."""
        owner = attribute("self", path) if path else "self"
        for name, tensor in module._parameters.items():
            value = "None" if tensor is None else self._empty(tensor)
            if tensor is not None:
                self.imports.module("nn", "torch.nn")
                trained = "" if tensor.requires_grad else ", requires_grad=False"
                value = f"nn.Parameter({value}{trained})"
            if tensor is None or not is_plain_name(name):
                lines.append(f"{owner}.register_parameter({quoted(name)}, {value})")
            else:
                lines.append(f"{owner}.{name} = {value}")
        for name, buffer in module._buffers.items():
            persistent = "" if name not in module._non_persistent_buffers_set else ", persistent=False"
            value = "None" if buffer is None else self._empty(buffer)
            lines.append(f"{owner}.register_buffer({quoted(name)}, {value}{persistent})")

    def _empty(self, tensor: torch.Tensor) -> str:
        dtype = "" if tensor.dtype is torch.float32 else f", dtype={tensor.dtype}"
        return f"torch.empty({literal(tuple(tensor.shape), self.imports)}{dtype})"

    def _rearranged(self, module: nn.Module, made: nn.Module, path: str, after: list[str]) -> None:
        if held(module) != held(made):
            given = ", ".join(f"{name}={literal(names, self.imports)}" for name, names in held(module).items())
            after.append(f"{self.imports.of(hold)}({attribute('self', path)}, {given})")
        for name, child in module._modules.items():
            other = made._modules[name]
            assert child is not None and other is not None
            self._rearranged(child, other, f"{path}.{name}", after)

    def _guard(self, guard: InputGuard, path: str, after: list[str]) -> str:
        checks = "".join(f"    {literal(check, self.imports)},\n" for check in guard.checks)
        rest = [f"ranges={literal(guard.ranges, self.imports)}"]
        if guard.relations:
            rest.append(f"relations={literal(guard.relations, self.imports)}")
        if guard.surroundings:
            after.append(f"self.{path}.surroundings = {literal(dict(guard.surroundings), self.imports)}")
        name = self.imports.of(InputGuard)
        listed = f"[\n{textwrap.indent(checks, '    ')}    ]" if checks else "[]"
        return f"{name}(\n    {listed},\n" + "".join(f"    {each},\n" for each in rest) + ")"

    # ---- classes ----

    def _region(self, region: TreeGraphModule, path: str) -> str:
        """Return the name of the class of a region; regions with the same code have the same class."""
        lines = self._lines(region, f"{path}.")
        own = {name: getattr(region, name) for name in ("kind", "quantization_points")}
        body = "".join(f"    {name} = {literal(value, self.imports)}\n" for name, value in own.items() if value)
        body += "\n    def __init__(self) -> None:\n        super().__init__()\n"
        body += textwrap.indent("\n".join(lines), " " * 8) + ("\n" if lines else "") + "\n" + self._forward(region)
        if body not in self.classes:
            wanted = region._class_name if region._class_name.isidentifier() else "Region"
            known = getattr(fused, wanted, None)
            if isinstance(known, type) and issubclass(known, FusedModule):
                wanted += "Region"  # that class is imported where it is used
            number = 1
            taken = {*self.classes.values(), self._root_name(), *self.imports.names}
            name = wanted
            while name in taken:
                number += 1
                name = f"{wanted}{number}"
            self.classes[body] = name
            self.bodies.append(f"class {name}({self.imports.of(WrittenRegion)}):\n{body}")
        return self.classes[body]

    def _forward(self, module: TreeGraphModule) -> str:
        """Return the method `forward`, and import what it names."""
        code = module.graph.python_code("self")
        tree = ast.parse(code.src)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for name, value in code.globals.items():
            if name not in used or name == "torch":
                continue
            if name in ("inf", "nan"):
                self.imports.names[name] = ("math", name)
            else:
                self.imports.of(value, name)
        return textwrap.indent(code.src.strip("\n").rstrip() + "\n", "    ")

    # ---- state ----

    def _state(self, module: EmittedModule) -> list[str]:
        """Return the statements for what `train()`, `parameters()` and `forward` need beside the tree."""
        lines: list[str] = []
        if "_keys" in vars(module):
            lines.append(f"self._keys = {literal(module._keys, self.imports)}")
        for path, each in module.named_modules():
            if not isinstance(each, SwitchedModule) or self._is_kept(path):
                continue
            for name in ("_modes_after", "_unlike_after"):
                value = vars(each).get(name)
                if value:
                    owner = attribute("self", path) if path else "self"
                    lines.append(f"{owner}.{name} = {literal(value, self.imports)}")
        if module._mode_locked is not None:
            more = ", is_unknown=True" if module._mode_unknown else ""
            more += f", remedy={quoted(module._mode_remedy)}" if module._mode_remedy else ""
            lines.append(f"self.lock_mode({quoted(module._mode_locked)}{more})")
        names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
        if names != [name for name, _ in nn.Module.named_parameters(module, remove_duplicate=False)]:
            lines.append(f"{self.imports.of(list_in_order)}(self, {literal(names, self.imports)})")
        others = [path for path, each in module.named_modules() if each.training != module.training]
        given = f", others={literal(others, self.imports)}" if others else ""
        lines.append(f"{self.imports.of(start)}(self, training={module.training}{given})")
        return lines

    def _is_kept(self, path: str) -> bool:
        return any(path == each or path.startswith(f"{each}.") for each in self.kept)


_ABOUT = """\
`load()` returns the module with its weights, which is trained, copied and run as any other. The code is that of the
emitted module; the classes of its parts are PyTorch's, and graphwright's.
"""


def _assigned(owner: str, name: str, value: str) -> str:
    place = attribute("self", owner) if owner else "self"
    return f"{place}.{name} = {value}" if is_plain_name(name) else f'{place}.add_module("{_escaped(name)}", {value})'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
