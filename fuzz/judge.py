"""What can be done with a case, whether it is a program or a module: check it, show it, write it as a script."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from fuzz.case import Case
from fuzz.check import Finding, Outcome, Properties, check_case
from fuzz.module_case import ModuleCase
from fuzz.module_check import check_module, lowered_and_changed
from fuzz.observation import quiet
from fuzz.orders import InOrder
from ir.errors import GraphwrightError
from ir.printer import print_program
from ir.program import Program
from passes.manager import Pass, PassContext, run_pass
from passes.pattern import Pattern

AnyCase = Case | ModuleCase

_IMPORTS = "from torch import nn\nfrom torch.nn import functional as F\n"


def judge(pass_: Pass, case: AnyCase, properties: Properties, program: Program | None = None) -> Outcome:
    """Apply a pass to a case and hold the result to the properties.

    Args:
        pass_: the pass.
        case: what it is applied to.
        properties: what must hold.
        program: the program of a case that is one, where it exists already; it is changed.

    Raises:
        Finding: when a property does not hold.
        Unusable: when the case cannot be run as it was.
    """
    if isinstance(case, ModuleCase):
        return check_module(pass_, case, properties)
    return check_case(pass_, case, properties, program)


def before_and_after(pass_: Pass, case: AnyCase) -> tuple[str, str]:
    """Return the text of the program before and after a pass; an empty one where there is none."""
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
    """Return the case without what the finding does not need: a module keeps the capture in which it was found."""
    if isinstance(case, ModuleCase) and finding.way is not None:
        return attrs.evolve(case, ways=(finding.way,))
    return case


def write_script(
    subject: str, pass_: Pass, rules: Sequence[Pattern], properties: Properties, case: AnyCase, message: str
) -> str:
    """Return a Python script that builds the case, applies the subject, and fails."""
    imports, expression = _expression(subject, rules)
    if isinstance(pass_, InOrder) and pass_.number:
        imports = f"from fuzz.orders import InOrder\nfrom fuzz.sound import Target\n{imports}"
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


def _expression(subject: str, rules: Sequence[Pattern]) -> tuple[str, str]:
    if not rules:
        return "from graphwright import parse_pipeline\n", f"parse_pipeline({subject!r})"
    imports = "".join(f"from {type(rule).__module__} import {type(rule).__qualname__}\n" for rule in rules)
    return imports, "(" + "".join(f"{type(rule).__qualname__}, " for rule in rules).strip() + ")"
