"""Plans: the rewrites that a pipeline would make of a model, listed before any is made, and switched off one by one."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from compiler.targets.target import Target
from ir.core import Operation
from ir.errors import InputError
from ir.locations import Location
from ir.program import Program, copy_program
from ir.spelling import did_you_mean
from passes.manager.manager import Pass, PassContext, PassManager
from passes.manager.options import takes_passes
from passes.rewrite.driver import RewriteLog
from passes.rewrite.pattern import Match, Pattern
from passes.rewrite.remarks import OpSummary
from passes.rewrite.scope import Key, ModuleClasses, Scope, names_place, with_parents

_MOST_SHOWN = 3

RewriteKey = tuple[str, tuple[tuple[str, str], ...], int]
"""Rule, (operator, module path) of each operation of the match, and its number among those of which all this is the
same: the blocks of one module that is called twice."""


Misses = Mapping[tuple[str, Location], Iterable[str]]
"""(operator, location) -> why rules did not match there."""


@attrs.frozen
class PlannedRewrite:
    """A match of a rule, as it is found when all rewrites before it are made.

    Attributes:
        rule: name of the rule.
        operations: what matches: all of it is replaced.
        kind: `conversion`, `fusion` or `rewrite`.
        number: its number among matches of the same rule on the same operators in the same modules, from 0.
        is_on: whether it is to be made.
    """

    rule: str
    operations: tuple[OpSummary, ...]
    kind: str
    number: int
    is_on: bool

    @property
    def key(self) -> RewriteKey:
        """What it is known by, in every run on the same model."""
        return self.rule, tuple([(op.name, op.location.module_path) for op in self.operations]), self.number

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the modules whose operations match."""
        return tuple(dict.fromkeys(place.module_path for place in self._places))

    @property
    def _places(self) -> Iterator[Location]:
        return (place for op in self.operations for place in op.location.parts)

    def __str__(self) -> str:
        again = f", number {self.number}" if self.number else ""
        return f"{self.rule} at {', '.join(path or 'the root' for path in self.modules)}{again}"


@attrs.frozen
class Switch:
    """Switches some rewrites on or off: those with a key, or those of rules in modules.

    Attributes:
        rule: glob of the names of rules.
        modules: globs of module paths, and classes of modules.
        keys: the keys of single rewrites; empty for all that `rule` and `modules` mean.
        is_on: whether they are made.
    """

    rule: str
    modules: tuple[Key, ...]
    keys: frozenset[RewriteKey]
    is_on: bool

    def means(self, rewrite: PlannedRewrite) -> bool:
        """Return whether it is about a rewrite: any operation of the match in one of the modules counts."""
        if self.keys and rewrite.key not in self.keys:
            return False
        if not fnmatch.fnmatchcase(rewrite.rule, self.rule):
            return False
        return any(names_place(key, place) for key in self.modules for place in rewrite._places)


@attrs.define(eq=False)
class Following:
    """Decides on each rewrite of one run by switches, and lists them.

    Attributes:
        switches: the last that means a rewrite decides.
        log: the log of the run.
    """

    switches: Sequence[Switch]
    log: RewriteLog
    _found: dict[PlannedRewrite, None] = attrs.field(factory=dict)
    _roots: dict[RewriteKey, dict[Operation, int]] = attrs.field(factory=dict)
    """Key without a number -> roots in the order in which they were met."""
    _made: int = 0
    """How many rewrites were made before the last that was listed as one to be made."""
    _is_open: bool = False

    def __call__(self, rule: Pattern, match: Match, is_recorded: bool = True) -> str | None:
        """Return why a rewrite is not made; None where it is, as those are that are not recorded."""
        if not is_recorded:
            return None
        self._settle()
        operations = tuple([OpSummary(op.name, op.location) for op in match.ops or (match.root,)])
        kind = "conversion" if rule.is_conversion else "fusion" if rule.is_fusion else "rewrite"
        first = PlannedRewrite(rule.name, operations, kind, 0, True)
        roots = self._roots.setdefault(first.key, {})
        rewrite = attrs.evolve(first, number=roots.setdefault(match.root, len(roots)))
        is_on = next((switch.is_on for switch in reversed(self.switches) if switch.means(rewrite)), True)
        rewrite = attrs.evolve(rewrite, is_on=is_on)
        self._made, self._is_open = len(self.log.matches), is_on and rewrite not in self._found
        self._found.setdefault(rewrite)
        return None if is_on else "it is switched off in the plan"

    def _settle(self) -> None:
        """Take the last rewrite off the list if it changed nothing."""
        if self._is_open and len(self.log.matches) == self._made:
            self._found.popitem()
        self._is_open = False

    def rewrites(self) -> tuple[PlannedRewrite, ...]:
        """Return the rewrites in the order in which they are made, and those that are not."""
        self._settle()
        return tuple(self._found)


@attrs.define(eq=False, repr=False)
class Plan:
    """The rewrites that a pipeline makes of a model, each of which can be switched off.

    It holds a program of the model, and runs the pipeline on a copy of it: a rule that matches what an earlier one made
    is listed too, and where a rewrite is switched off, the list shows what matches in its place. Iteration gives the
    rewrites in the order in which they are made, `plan[3]` one of them, `print(plan)` a table.

    Rewrites of `canonicalize`, and passes that apply no rules, are part of it and are not listed.

    Attributes:
        target: the target of the pipeline.
        pipeline: the pipeline.
    """

    target: Target
    pipeline: PassManager
    _program: Program
    _modules: ModuleClasses
    _strict: bool = True
    _switches: tuple[Switch, ...] = ()
    _listed: tuple[PlannedRewrite, ...] | None = None

    @property
    def rewrites(self) -> tuple[PlannedRewrite, ...]:
        """The rewrites, those that are switched off among them."""
        if self._listed is None:
            log = RewriteLog(modules=self._modules, strict=self._strict)
            log.veto = following = self.follow(log)
            manager = without_instruments(self.pipeline)
            manager.run(copy_program(self._program), PassContext(log=log, scope=manager.scope.bound(self._modules)))
            self._listed = following.rewrites()
        return self._listed

    def follow(self, log: RewriteLog) -> Following:
        """Return what decides on the rewrites of a run."""
        return Following(self._switches, log)

    def disable(self, *rewrites: PlannedRewrite, rule: str = "*", module: Any = "*") -> None:
        """Switch rewrites off.

        Args:
            rewrites: single ones, from this plan; without any, all that `rule` and `module` mean.
            rule: a glob of rules by name.
            module: globs of module paths, and classes of modules; one, or a list. They mean the rewrites that take in
                any operation of such a module.

        Raises:
            InputError: when no rewrite is meant; the error names what is near.
        """
        self._switch(rewrites, rule, module, is_on=False)

    def enable(self, *rewrites: PlannedRewrite, rule: str = "*", module: Any = "*") -> None:
        """Switch rewrites on again; the last switch that means a rewrite decides. The arguments are those of `disable`.

        Raises:
            InputError: when no rewrite is meant; the error names what is near.
        """
        self._switch(rewrites, rule, module, is_on=True)

    def _switch(self, rewrites: Sequence[PlannedRewrite], rule: str, module: Any, *, is_on: bool) -> None:
        for given in rewrites:
            if not isinstance(given, PlannedRewrite):
                raise InputError(
                    f"{given!r} is no rewrite of a plan", remedy="give one of its list, `plan.disable(plan[3])`"
                )
        if not isinstance(rule, str):
            raise InputError(f"rule={rule!r} is no text", remedy='give a glob of names: `rule="ConvBN*"`')
        modules = Scope(only=module).bound(self._modules).only
        if not all(isinstance(key, str) for key in modules):
            raise InputError(
                "a plan knows no operations, of which a predicate could be asked",
                remedy="choose rewrites from its list: `plan.disable(*[r for r in plan if ...])`",
            )
        switch = Switch(rule, modules, frozenset([each.key for each in rewrites]), is_on)
        if not any(map(switch.means, self.rewrites)):
            raise InputError(f"no rewrite of the plan is {_described(switch)}", remedy=_near(switch, self.rewrites))
        self._switches += (switch,)
        self._listed = None

    def check(self, made: Sequence[PlannedRewrite], misses: Misses) -> None:
        """Demand that a run made the rewrites of this plan, and no others.

        Args:
            made: the rewrites of the run.
            misses: (operator, location) -> why rules did not match there.

        Raises:
            InputError: when it did not; the error names the first differences.
        """
        planned = {each.key: each for each in self.rewrites}
        found = {each.key: each for each in made}
        faults = [
            f"{each} was planned, and does not match{_reason(each, misses)}"
            for key, each in planned.items()
            if key not in found
        ]
        faults += [f"{each} matches, and was not planned" for key, each in found.items() if key not in planned]
        if faults:
            more = [f"and {len(faults) - _MOST_SHOWN} differences more"] if len(faults) > _MOST_SHOWN else []
            raise InputError(
                "the model is another one than was planned:"
                + "".join(f"\n  {line}" for line in (*faults[:_MOST_SHOWN], *more)),
                remedy="make a plan of this model: `plan(model, example_inputs)`",
            )

    def __iter__(self) -> Iterator[PlannedRewrite]:
        return iter(self.rewrites)

    def __len__(self) -> int:
        return len(self.rewrites)

    def __getitem__(self, index: int) -> PlannedRewrite:
        return self.rewrites[index]

    def __str__(self) -> str:
        width = max((len(each.rule) for each in self), default=0)
        rows = [
            f"{number:4}  {'' if each.is_on else 'off':3}  {each.rule:{width}}  {_where(each)}"
            for number, each in enumerate(self)
        ]
        return "\n".join(rows) or "no rewrites"

    def __repr__(self) -> str:
        off = sum(not each.is_on for each in self)
        return f"<Plan of {len(self)} rewrites, {off} of them off>"


def _where(rewrite: PlannedRewrite) -> str:
    return str(rewrite).partition(" at ")[2]


def without_instruments(manager: PassManager) -> PassManager:
    """Return a pipeline that tells no instruments: what is planned is not done."""
    passes: list[Pass] = [
        without_instruments(each) if isinstance(each, PassManager) and takes_passes(type(each)) else each
        for each in manager.passes
    ]
    bare = attrs.evolve(manager, instruments=())
    return bare.with_passes(passes) if takes_passes(type(manager)) else bare


def _described(switch: Switch) -> str:
    if switch.keys:
        return "one of those given"
    rule = "" if switch.rule == "*" else f"of a rule {switch.rule!r}"
    module = "" if switch.modules == ("*",) else f"in a module {', '.join(map(repr, switch.modules))}"
    return " ".join(filter(None, (rule, module))) or "left to switch"


def _near(switch: Switch, rewrites: Sequence[PlannedRewrite]) -> str:
    """Return which rules and modules there are that a switch may mean."""
    if not rewrites:
        return "the plan is empty: `transform` says in `result.remarks` why nothing matches"
    if switch.keys:
        return "the list changes when something is switched off: take the rewrite from it again"
    of_rule = [each for each in rewrites if fnmatch.fnmatchcase(each.rule, switch.rule)]
    if not of_rule:
        rules = list(dict.fromkeys(each.rule for each in rewrites))
        return did_you_mean(switch.rule, rules, f"rules are {', '.join(rules)}")
    paths = list(
        dict.fromkeys(near for each in of_rule for path in each.modules for near in with_parents(path) if near)
    )
    shown = ", ".join(paths[:8]) + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")
    whose = "" if switch.rule == "*" else f" of {', '.join(dict.fromkeys(each.rule for each in of_rule))}"
    return did_you_mean(str(switch.modules[0]), paths, f"modules{whose} are {shown or 'the root alone'}")


def _reason(rewrite: PlannedRewrite, misses: Misses) -> str:
    """Return why a rule did not match in some modules, whose lines may be others now."""
    places = {(op.name, op.location.module_path) for op in rewrite.operations}
    for (name, location), reasons in misses.items():
        for reason in reasons if (name, location.module_path) in places else ():
            if reason.startswith(f"{rewrite.rule}: "):
                return f" ({reason.partition(': ')[2]})"
    return ""
