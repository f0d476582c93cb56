"""Scopes of a pipeline on a model: what classes of modules they mean, and that they mean something."""

from __future__ import annotations

from collections.abc import Iterator

from torch.fx import GraphModule

from compiler.capture.captured import Captured
from compiler.usercode.locations import plain_path
from ir.errors import GraphwrightError
from ir.locations import Location
from ir.program import Program
from passes.manager.manager import Pass, PassManager
from passes.rewrite.pattern import instantiate
from passes.rewrite.scope import ModuleClasses, Scope, classes_of_modules, names_of_class, names_of_type


def module_classes(captured: Captured) -> ModuleClasses:
    """Return the names of the classes of a model's modules by path, as far as the capture tells."""
    found = {} if captured.module is None else classes_of_modules(captured.module)
    exported = None if captured.traced is None else captured.traced.exported.graph_module
    # where `torch.fx` had containers it leaves plain modules: only the nodes of its graph tell the classes
    for graph in (exported, captured.graph_module, captured.module):
        for node in graph.graph.nodes if isinstance(graph, GraphModule) else ():
            for path, class_ in (node.meta.get("nn_module_stack") or {}).values():
                names = names_of_type(class_) if isinstance(class_, type) else names_of_class(str(class_))
                place = plain_path(path)
                found[place] = found.get(place, frozenset()) | names
    return found


def check_scopes(manager: PassManager, program: Program, modules: ModuleClasses) -> None:
    """Demand that each glob and class in the scopes of a pipeline means something in a model.

    Raises:
        InputError: when one means nothing.
    """
    locations: tuple[Location, ...] | None = None
    for pass_, scope in _scopes(manager):
        if scope.is_everywhere:
            continue
        if locations is None:
            locations = tuple(dict.fromkeys(op.location for op in program.graph.operations()))
        try:
            scope.check(locations, modules)
        except GraphwrightError as error:
            error.add_note(f"in pass `{pass_}`")
            raise


def _scopes(pass_: Pass) -> Iterator[tuple[Pass, Scope]]:
    """Yield the scopes of a pass, of its patterns, and of the passes in it."""
    yield pass_, Scope(pass_.only, pass_.skip)
    if isinstance(pass_, PassManager):
        for inner in pass_.passes:
            yield from _scopes(inner)
    else:
        for rule in instantiate(getattr(pass_, "patterns", ())):
            yield pass_, rule.scope
