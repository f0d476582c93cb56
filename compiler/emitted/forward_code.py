"""The code of an emitted `forward`: Python's kinds of parameters, and names as a person writes them."""

from __future__ import annotations

import ast
import builtins
import json
import keyword
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import torch
from torch import fx, nn
from torch.fx.graph import CodeGen, PythonCode, _format_target

from ir.errors import InputError

_TAKEN = "_taken"
"""What generated code calls `taken`."""
OWN_NAMES = ("self", _TAKEN)
"""Names in generated code that fx does not know to be taken: no result may have one."""

# fx writes functions under the name of the module that they say they are from
_HOMES: dict[str, Any] = {"torch._C._nn": nn.functional, "torch.functional": torch}
_PRIVATE = re.compile(r"\b(torch\._C\._nn|torch\.functional)\.(\w+)")
_SUBSCRIPT = re.compile(r"^(    \w+ = \w+)\[(.*?slice\(.*?)\](;  .*)?$", re.MULTILINE)
_ASSIGNED = re.compile(r"^(    (\w+)(?: : .*?)? = )(.*)$", re.MULTILINE)
_SLICE = re.compile(r"slice\(([^(),]+), ([^(),]+), ([^(),]+)\)")


def _public_name(found: re.Match[str]) -> str:
    """Return the public name of the function that fx wrote as `torch._C._nn.gelu`."""
    home = _HOMES[found[1]]
    function = getattr(home, found[2], None)
    same = function is not None and function is getattr(sys.modules[found[1]], found[2], None)
    return f"{home.__name__}.{found[2]}" if same else found[0]


def _subscript(found: re.Match[str]) -> str:
    """Return `x[:, 1:3]` for what fx wrote as `x[(slice(None, None, None), slice(1, 3, None))]`."""
    inner = found[2]
    if inner.startswith("(") and inner.endswith(")"):
        inner = inner[1:-1]
    return f"{found[1]}[{_SLICE.sub(_colons, inner)}]{found[3] or ''}"


def _respelled(found: re.Match[str], old: str, new: str) -> str:
    """Return an assignment whose right side begins with `new` where fx wrote `old`."""
    return f"{found[1]}{new}{found[3][len(old) :]}" if found[3].startswith(old) else found[0]


def _colons(found: re.Match[str]) -> str:
    start, stop, step = ("" if part == "None" else part for part in found.groups())
    return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"


@attrs.define(eq=False, slots=False)
class SignatureCodeGen(CodeGen):
    """Writes a `forward` with the kinds of parameters that Python knows."""

    positional: int
    """The number of parameters before the keyword-only ones."""
    names: tuple[str, ...] = ()
    """Names of the parameters; keywords of the arguments that `**kwargs` takes."""
    positional_only: int = 0
    """How many parameters cannot be given by name."""
    defaults: Mapping[int, Any] = attrs.field(factory=dict)
    """Number of a parameter -> its default."""
    absent: tuple[int, ...] = ()
    """Numbers of the parameters that the capture passed no argument for."""
    variable: str = ""
    """Name of the `**kwargs`."""
    keywords: int = 0
    """How many parameters, the last ones, `**kwargs` takes."""
    keeps_order: bool = False
    """Whether these have to be given in the order of their `names`."""

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    @property
    def data(self) -> tuple[Any, ...]:
        """The arguments that make an equal one."""
        return attrs.astuple(self, recurse=False)

    def process_inputs(self, *args: Any) -> Any:
        """Return the arguments of all parameters, for an interpreter.

        `torch.export` interprets an `fx.GraphModule` with the values of all keyword arguments passed by position, in
        the order of the call. Otherwise as many arguments as the capture had are taken for the same parameters; the
        guard checks them.
        """
        keywords = _keywords_of_export(args)
        if keywords:
            return self._bind(args[: len(args) - len(keywords)], keywords)
        missing = self.absent
        if not missing or len(args) != len(self.names) - len(missing):
            return args
        rest = iter(args)
        return tuple(self.defaults[i] if i in missing else next(rest) for i in range(len(self.names)))

    def _bind(self, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the arguments of all parameters, by their names."""
        first = len(self.names) - self.keywords
        named = dict(keywords)
        given = [
            named.pop(self.names[i]) if self.names[i] in named else self.defaults[i] for i in range(len(args), first)
        ]
        return *args, *given, *(taken(named, self.names[first:], self.keeps_order) if self.variable else ())

    def gen_fn_def(self, free_vars: list[str], maybe_return_annotation: str, *, expanded_def: bool = False) -> str:
        """Return the `def` line, and one that takes the arguments out of `**kwargs`."""
        start = 1 if free_vars and free_vars[0] == "self" else 0
        last = free_vars[len(free_vars) - self.keywords :]
        del free_vars[len(free_vars) - self.keywords :]
        if self.positional_only:
            free_vars.insert(start + self.positional_only, "/")
        cut = start + self.positional + bool(self.positional_only)
        if cut < len(free_vars):
            free_vars[cut:cut] = ["*"]
        if self.variable:
            free_vars.append(f"**{self.variable}")
        definition = super().gen_fn_def(free_vars, maybe_return_annotation, expanded_def=expanded_def)
        if not self.variable:
            return definition
        names = ", ".join(re.match(r"\w+", each)[0] for each in last)  # type: ignore[index]
        keys = self.names[len(self.names) - self.keywords :]
        order = ", keeps_order=True" if self.keeps_order else ""
        return f"{definition}\n    [{names}] = {_TAKEN}({self.variable}, {keys!r}{order})"

    def _gen_python_code(self, nodes: Any, root_module: str, *args: Any, **kwargs: Any) -> PythonCode:
        code = super()._gen_python_code(nodes, root_module, *args, **kwargs)
        code.src = _SUBSCRIPT.sub(_subscript, _PRIVATE.sub(_public_name, code.src))
        if self.variable:
            code.globals[_TAKEN] = taken
        respelled: dict[str, tuple[str, str]] = {}
        for node in nodes:
            if node.op in ("call_module", "get_attr") and not all(map(is_plain_name, node.target.split("."))):
                respelled[node.name] = _format_target(root_module, node.target), attribute(root_module, node.target)
        for old, new in respelled.values():
            if "\n" in old:  # fx indents its lines; no string of Python holds one, so this is no part of another
                code.src = code.src.replace(old.replace("\n", "\n    "), new)
        if respelled:
            code.src = _ASSIGNED.sub(lambda found: _respelled(found, *respelled.get(found[2], ("", ""))), code.src)
        for node in nodes:  # when it is Python
            if node.op == "placeholder" and node.name != node.target:
                _unshadow(code, node.name, node.target)
        return code


def taken(given: Mapping[str, Any], keys: tuple[str, ...], keeps_order: bool = False) -> list[Any]:
    """Return the arguments that `**kwargs` took, as they were captured.

    Args:
        given: what the caller gave.
        keys: the captured keywords.
        keeps_order: whether they have to come in this order: the code of the original walks through them.

    Raises:
        InputError: when the keywords are others, or come in another order.
    """
    if isinstance(given, fx.Proxy) or tuple(given) == keys or (not keeps_order and set(given) == set(keys)):
        return [given[key] for key in keys]
    wanted, found = (", ".join(map(repr, each)) for each in (keys, given))
    if set(given) == set(keys):
        raise other_order("the keyword arguments", given, keys)
    raise InputError(
        f"the keyword arguments are {found or 'none'}, and the model was captured with {wanted}",
        remedy="pass the same ones as in the example inputs",
    )


def other_order(name: str, given: Iterable[Any], keys: Iterable[Any]) -> InputError:
    """Return the error for a mapping whose keys come in another order than the captured one, where that matters."""
    wanted, found = (", ".join(map(repr, each)) for each in (keys, given))
    return InputError(
        f"{name} came in the order {found}, and the model was captured with {wanted}: it walks through them, so"
        " another order may give another result",
        remedy=f"pass them in the order {wanted}, or transform the model with the other order in the example",
    )


def _keywords_of_export(args: tuple[Any, ...]) -> Mapping[str, Any]:
    """Return the keyword arguments whose values `torch.export` passes to the interpreter without their names.

    The names are in its frame and nowhere else; without them, arguments in another order would be mixed up.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, fx.graph.__name__):
        frame = frame.f_back
    caller = frame.f_back
    if frame.f_code is not fx.Interpreter.run.__code__ or caller is None:
        return {}
    if caller.f_globals.get("__name__") != "torch.export._trace":
        return {}
    keywords = caller.f_locals.get("kwargs")
    if not isinstance(keywords, dict) or not keywords or len(keywords) > len(args):
        return {}
    values = args[len(args) - len(keywords) :]
    return keywords if all(a is b for a, b in zip(values, keywords.values(), strict=True)) else {}


def is_plain_name(name: str) -> bool:
    """Whether Python code can spell an attribute verbatim: the parser normalizes names (NFKC), so `µ` becomes `μ`."""
    return name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name


def attribute(root: str, target: str) -> str:
    """Return the expression for a submodule at a path, of which parts may be no plain names."""
    for name in target.split("."):
        root = f"{root}.{name}" if is_plain_name(name) else f"getattr({root}, {json.dumps(name)})"
    return root


def _unshadow(code: PythonCode, name: str, parameter: str) -> None:
    """Rename a global that the code uses where a parameter of `forward` shadows it (`torch`, `device`)."""
    if parameter in code.globals:
        hidden = code.globals[parameter]
    elif hasattr(builtins, parameter):
        hidden = getattr(builtins, parameter)
    else:
        return
    first = code.src.partition(f"    {name} = {parameter}\n")[0].count("\n") + 1
    # a search by text would also find it in strings
    places = [
        (node.lineno - 1, node.col_offset)
        for node in ast.walk(ast.parse(code.src))
        if isinstance(node, ast.Name) and node.id == parameter and node.lineno > first
    ]
    if not places:
        return
    code.globals[f"_global_{parameter}"] = hidden
    lines = [line.encode() for line in code.src.split("\n")]  # the columns are those of UTF-8
    for row, column in sorted(places, reverse=True):
        line, end = lines[row], column + len(parameter.encode())
        lines[row] = line[:column] + f"_global_{parameter}".encode() + line[end:]
    code.src = b"\n".join(lines).decode()
