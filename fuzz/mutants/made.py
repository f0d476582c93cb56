"""Generated mutants: every edit of the operators, in all code that a rule, a pass or type inference reaches."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any

import attrs

from compiler.usercode.locations import names_in
from fuzz.calls.generators import GENERATORS
from fuzz.mutants.mutation import Mutant, Subject, innermost_function
from fuzz.mutants.operators import edits
from fuzz.search.quantized import SIGNED
from ir.opdef import get_opdef
from passes.quant.place import place
from passes.quant.remove import remove_quantizers
from passes.quant.signs import never_negative
from passes.quant.tables.conditions import CONDITIONS
from passes.quant.unify import unify_quantizers
from passes.rewrite.pattern import Pattern

_SHARED = ("ir.memory.", "passes.attention")
"""Modules that rules of all folders use: their faults are faults of these rules."""
_INFERENCE = ("ir.ops.inference.", "ir.quant.")
_PLACED = Subject("quant")
_QUANT = ("passes.quant.",)
_ERRORS_OF_TABLES = ("passes.quant.rules:", "passes.quant.tables.row:", "passes.quant.decide:Placing._check_table")
_CONSTANTS = tuple(f"aten.{name}" for name in ("full", "zeros", "ones", "arange", "new_full", "full_like"))
_ON_CONSTANTS = tuple(
    f"aten.{name}"
    for name in (
        *("add.Tensor", "mul.Tensor", "where.self", "permute", "reshape", "neg", "exp", "to.dtype", "where.Scalar"),
        *("linear", "unbind.int"),
    )
)
_CLEANUP = "eliminate-common-subexpressions,eliminate-dead-code"
_WITH_EFFECTS = tuple(
    f"aten.{name}"
    for name in (
        *("dropout", "batch_norm", "rand_like", "randn_like", "scaled_dot_product_attention", "split.Tensor"),
        *("unbind.int", "max.dim", "relu", "add.Tensor", "reshape", "mul.Scalar", "full_like"),
    )
)
"""Operators with effects, some of them in training only, and some without."""
_ON_WEIGHTS = tuple(f"aten.{name}" for name in ("linear", "permute", "reshape", "mul.Tensor", "relu"))


@attrs.frozen
class _Machinery:
    """A pass that does not consist of rules, or what the matcher asks."""

    start: str
    """Its entry point."""
    homes: tuple[str, ...]
    """The modules that are mutated for it."""
    subject: Subject


_MACHINERY = (
    _Machinery(
        "passes.cleanup.cse:EliminateCommonSubexpressions.run",
        ("passes.cleanup.cse",),
        Subject("pass", ("eliminate-common-subexpressions",), _WITH_EFFECTS),
    ),
    _Machinery(
        "passes.cleanup.dce:EliminateDeadCode.run",
        ("passes.cleanup.dce",),
        Subject("pass", ("eliminate-dead-code",), _WITH_EFFECTS),
    ),
    *(
        _Machinery(
            f"passes.rewrite.effects:{start}", ("passes.rewrite.effects",), Subject("pass", (_CLEANUP,), _WITH_EFFECTS)
        )
        for start in ("is_mergeable", "is_removable", "reads_written")
    ),
    _Machinery(
        "passes.fold.constants:FoldConstants.run",
        ("passes.fold.constants",),
        Subject("pass", ("fold-constants",), (*_CONSTANTS, *_ON_CONSTANTS)),
    ),
    _Machinery(
        "passes.fold.batch_norm:FoldBatchNorm.run",
        ("passes.fold.batch_norm",),
        Subject("pass", ("fold-batch-norm", "FoldBatchNormPattern")),
    ),
    _Machinery(
        "passes.fold.freeze:FreezeWeights.run",
        ("passes.fold.freeze", "passes.rewrite.expressions"),
        Subject("pass", ("freeze-weights{max-growth=16}", "freeze-weights")),
    ),
    _Machinery(
        "passes.fold.weights:FoldParameterViews.run",
        ("passes.fold.weights",),
        Subject("pass", ("canonicalize{fold_parameter_views=true}",), _ON_WEIGHTS),
    ),
    _Machinery(
        "passes.rewrite.literals:has_value",
        ("passes.rewrite.literals",),
        Subject("rule", ("fuzz.mutants.literals:WriteLiterals", "WriteOneForm")),
    ),
)


def mutants_of_rules(rules: Mapping[str, type[Pattern]], *, shared: bool = False) -> list[Mutant]:
    """Return the mutants of rules: of their methods, and of the functions that these call in the rule's folder.

    A function that several rules reach is mutated once, and tried on all of them.

    Args:
        rules: name -> rule.
        shared: whether modules that rules of all folders use are mutated too.
    """
    reaching: dict[_Target, list[str]] = {}
    for name, rule in rules.items():
        folder = rule.__module__.rpartition(".")[0]
        homes = (f"{folder}." if folder else rule.__module__, *(_SHARED if shared else ()))
        for target in _reached(_methods(rule), homes):
            reaching.setdefault(target, []).append(name)
    return [m for target, names in reaching.items() for m in _mutants(target, Subject("rule", tuple(names)))]


def mutants_of_passes() -> list[Mutant]:
    """Return the mutants of passes that do not consist of rules, and of what literals of patterns mean."""
    found: dict[str, Mutant] = {}
    for pass_ in _MACHINERY:
        for target in _reached([_resolved(pass_.start)], pass_.homes):
            for mutant in _mutants(target, pass_.subject):
                found.setdefault(mutant.name, mutant)
    return list(found.values())


def mutants_of_quantizers() -> list[Mutant]:
    """Return the mutants of the placement of quantizers, of the conditions of its tables, and of what unites them.

    What refuses rules of users, and tables and rows, is no part of it: a drawn table has nothing wrong.
    """
    starts = [place, never_negative, unify_quantizers, remove_quantizers, *CONDITIONS.values()]
    targets = _reached(starts, _QUANT)
    kept = [target for target in targets if not target.path.startswith(_ERRORS_OF_TABLES)]
    signs = Subject("quant", operators=SIGNED)
    subjects = [(target, signs if target.path.startswith(never_negative.__module__) else _PLACED) for target in kept]
    return [mutant for target, subject in subjects for mutant in _mutants(target, subject)]


def mutants_of_inference() -> list[Mutant]:
    """Return the mutants of type inference, each tried on the operators that reach it."""
    reaching: dict[_Target, list[str]] = {}
    for name in GENERATORS:
        infer = get_opdef(name).infer
        if infer is not None:
            for target in _reached([infer], _INFERENCE):
                reaching.setdefault(target, []).append(name)
    return [m for target, names in reaching.items() for m in _mutants(target, Subject("types", operators=tuple(names)))]


def _mutants(target: _Target, subject: Subject) -> Iterator[Mutant]:
    seen: Counter[str] = Counter()
    for edit in edits(textwrap.dedent(inspect.getsource(_resolved(target.path))), inner=target.is_maker):
        name = f"{target.path}: {edit.operator}: {edit.label}"
        seen[name] += 1
        numbered = name if seen[name] == 1 else f"{name} ({seen[name]})"
        yield Mutant(numbered, edit.operator, target.path, edit.old, edit.new, subject, at=edit.at)


def _methods(rule: type[Pattern]) -> list[Any]:
    bases = [base for base in rule.__mro__ if base not in (object, Pattern)]
    return [vars(base).get(name) for base in bases for name in ("pattern", "check", "rewrite")]


@attrs.frozen
class _Target:
    """A function that code reaches."""

    path: str
    """`module:qualified.name`."""
    is_maker: bool
    """Whether only a function that it made is reached: it has run before there is a mutant."""


def _reached(starts: Iterable[Any], homes: tuple[str, ...]) -> list[_Target]:
    """Return the functions that code reaches by name in modules named like `homes`."""
    pending = list(starts)
    found: dict[str, bool] = {}
    closures: set[int] = set()
    while pending:
        item = pending.pop(0)
        if isinstance(item, type) and item.__module__.startswith(homes):
            pending += [member for name, member in vars(item).items() if not name.startswith("__")]
        function = innermost_function(item)
        if function is None or not function.__module__.startswith(homes) or id(function) in closures:
            continue
        closures.add(id(function))
        path = function.__qualname__.partition(".<locals>")[0]
        if function.__code__.co_filename.startswith("<") or "<lambda>" in path:
            continue  # attrs generated it, or it is a lambda outside of a function, which has no name
        target = f"{function.__module__}:{path}"
        whole = _resolved(target)
        found[target] = found.get(target, True) and whole is not function
        pending += [cell.cell_contents for cell in function.__closure__ or ()]
        pending += [function.__globals__.get(name) for name in dict.fromkeys(names_in(function.__code__))]
    return [_Target(*item) for item in found.items()]


def _resolved(target: str) -> FunctionType:
    module, _, path = target.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = inspect.getattr_static(found, name)
    function = innermost_function(found)
    assert function is not None, f"{target} is not a function"
    return function
