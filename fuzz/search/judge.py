"""Operations on a case, a program or a module: check it, show it, write it as a file."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import attrs

from compiler.pipeline import STANDARD_PASSES
from compiler.targets import STANDARD_PATTERNS
from fuzz.modules.case import ModuleCase
from fuzz.modules.check import check_module, lowered_and_changed
from fuzz.programs.case import Case, Outcome
from fuzz.programs.check import check_case
from fuzz.programs.observation import quiet
from fuzz.programs.properties import Finding, Properties
from fuzz.rules.names import name_of_rule
from fuzz.rules.orders import InOrder
from fuzz.rules.partial import explained_otherwise
from fuzz.rules.rule_pass import ApplyRules
from fuzz.search.casefile import SUFFIX, format_case
from ir.errors import GraphwrightError
from ir.program import Program
from ir.text.printer import print_program
from passes.manager.manager import Pass, PassContext, run_pass
from passes.manager.options import takes_passes
from passes.rewrite.pattern import Pattern

AnyCase = Case | ModuleCase

trace: Path | None = None
"""A file to which each case is written before it runs, to show which one ended the process."""
_EXPLAINED = 16
"""A search holds the explanation of one program in so many."""
_IMPORTS = "from torch import nn\nfrom torch.nn import functional as F\n"


def judge(pass_: Pass, case: AnyCase, properties: Properties, program: Program | None = None) -> Outcome:
    """Apply a pass to a case and check the properties of the result.

    Args:
        pass_: the pass.
        case: the case.
        properties: the properties that must hold.
        program: the program of the case, if it has been built; it is changed.

    Raises:
        Finding: when a property does not hold.
        Unusable: when the original case does not run.
    """
    if trace is not None:
        trace.write_text(case.code(), encoding="utf-8")
    if isinstance(case, ModuleCase):
        return check_module(pass_, case, properties)
    rules = pass_.rules if isinstance(pass_, ApplyRules) and properties.explained else ()
    built = case.build() if program is None and rules else program
    for rule in rules:
        assert built is not None
        said = explained_otherwise(rule, built)
        if said is not None:
            raise Finding("explained", said)
    return check_case(pass_, case, properties, program)


def in_a_search(properties: Properties, case: AnyCase) -> Properties:
    """Return what a search asks of a case: the explanation, which takes as long as all else, of some programs only."""
    if isinstance(case, ModuleCase) or zlib.crc32(case.program.encode()) % _EXPLAINED == 0:
        return properties
    return attrs.evolve(properties, explained=False)


def before_and_after(pass_: Pass, case: AnyCase) -> tuple[str, str]:
    """Return the texts of the program before and after a pass; empty if there is no program."""
    if isinstance(case, ModuleCase):
        return lowered_and_changed(pass_, case)
    changed = case.build()
    try:
        with quiet():
            run_pass(pass_, changed, PassContext())
    except GraphwrightError:
        return case.program, ""
    return case.program, print_program(changed)


def narrowed(case: AnyCase, finding: Finding) -> AnyCase:
    """Return the case without what the finding does not need: a module keeps only the capture at fault."""
    if isinstance(case, ModuleCase) and finding.way is not None:
        return attrs.evolve(case, ways=(finding.way,))
    return case


def write_case(
    subject: str, pass_: Pass, rules: Sequence[Pattern], properties: Properties, case: AnyCase, message: str
) -> tuple[str, str]:
    """Return a file that shows a failure, for `python -m fuzz replay`, and its suffix.

    It is text if the case is a program and the subject has a name, else a script.
    """
    applied = _fact(subject, pass_, rules)
    if isinstance(case, Case) and applied is not None:
        about = f"{subject}: {message.splitlines()[0]}"
        order = pass_.number if isinstance(pass_, InOrder) else 0
        text = format_case(about, applied, case, properties, order=order)
        if text is not None:
            return text, SUFFIX
    return write_script(subject, pass_, rules, properties, case, message), ".py"


def _fact(subject: str, pass_: Pass, rules: Sequence[Pattern]) -> str | None:
    """Return the fact that names the rules or the pipeline, or None if only code can express them."""
    if rules:
        names = [name for rule in rules if (name := name_of_rule(type(rule))) is not None]
        return f"rules: {', '.join(names)}" if len(names) == len(rules) else None
    passes, patterns = _parts(pass_)
    standard = set(passes) <= set(STANDARD_PASSES) and set(patterns) <= set(STANDARD_PATTERNS)
    return f"pipeline: {subject}" if standard else None


def write_script(
    subject: str, pass_: Pass, rules: Sequence[Pattern], properties: Properties, case: AnyCase, message: str
) -> str:
    """Return a Python script that builds the case, applies the subject, and fails."""
    imports, expression = _expression(subject, pass_, rules)
    if isinstance(pass_, InOrder) and pass_.number:
        imports = f"from fuzz.rules.orders import InOrder\nfrom fuzz.search.sound import Target\n{imports}"
        expression = f"InOrder(Target.of({expression}).pass_, {pass_.number})"
    options = ", ".join(
        f"{field.name}={value}"
        for field in attrs.fields(Properties)
        if (value := getattr(properties, field.name)) != field.default
    )
    first = message.splitlines()[0].replace("\\", "\\\\").replace('"""', "'''")
    more, names, classes = "", "Case, Properties", ""
    if isinstance(case, ModuleCase):
        more, names = _IMPORTS, "InputSpec, ModuleCase, Properties"
        classes = f"\n\n{case.source}\n\n"
    return f'''"""{subject}: {first}"""

import torch
{more}
from graphwright.fuzz import {names}, check
{imports}{classes}
SUBJECT = {expression}
PROPERTIES = Properties({options})
CASE = {case.code()}

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
'''


def _expression(subject: str, pass_: Pass, rules: Sequence[Pattern]) -> tuple[str, str]:
    """Return the imports of a script, and the expression of the subject."""
    if rules:
        imports, names = _imports(list(map(type, rules)))
        return imports, "(" + "".join(f"{name}, " for name in names).strip() + ")"
    passes, patterns = _parts(pass_)
    imports, names = _imports([class_ for class_ in passes if class_ not in STANDARD_PASSES])
    more, pattern_names = _imports([class_ for class_ in patterns if class_ not in STANDARD_PATTERNS])
    given = "".join(
        f", {key}=({', '.join(items)},)" for key, items in (("passes", names), ("patterns", pattern_names)) if items
    )
    return f"from graphwright import parse_pipeline\n{imports}{more}", f"parse_pipeline({subject!r}{given})"


def _parts(pass_: Pass) -> tuple[list[type[Pass]], list[type[Pattern]]]:
    """Return the classes of the passes in a pass, and of the patterns that they apply."""
    inner = [getattr(pass_, "pass_", None), *(getattr(pass_, "passes", ()) if takes_passes(type(pass_)) else ())]
    nested = [each for each in inner if isinstance(each, Pass)]
    patterns = [entry if isinstance(entry, type) else type(entry) for entry in getattr(pass_, "patterns", ())]
    if not nested:
        return [type(pass_)], patterns
    found = [_parts(each) for each in nested]
    passes = list(dict.fromkeys(class_ for each, _ in found for class_ in each))
    return passes, list(dict.fromkeys([*patterns, *(class_ for _, each in found for class_ in each)]))


def _imports(classes: Sequence[type]) -> tuple[str, list[str]]:
    """Return lines that import classes, and their names in the script."""
    lines, names = [], []
    for class_ in dict.fromkeys(classes):
        module, name = class_.__module__, class_.__qualname__
        if module == "__main__" or "<locals>" in name:
            lines.append(
                f"# define {class_.__name__} here: from where it stood ({module}, {name}) nothing can import it\n"
            )
            names.append(class_.__name__)
        else:
            lines.append(f"from {module} import {name.partition('.')[0]}\n")
            names.append(name)
    return "".join(lines), names
