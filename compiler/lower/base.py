"""The common part of both lowerings: the program, its tensors and weights, and facts about modules."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import fx, nn

from compiler.lower.functional.functionalizer import Functionalizer
from compiler.lower.module_facts import ModuleFacts, mode_locked, modules_of
from compiler.lower.weights import WeightTable
from compiler.usercode.locations import Locator
from ir.core import Graph, Operation
from ir.program import CallingConvention, Program


class Lowering:
    """Builds a program from a graph; subclasses visit the nodes.

    Args:
        module: the original; None for a bare ExportedProgram.
        convention: the calling convention, as far as it is known at the start.
        irregular: paths of modules whose mode code other than the layer's own reads or sets.
    """

    def __init__(
        self, module: nn.Module | None, convention: CallingConvention, irregular: Collection[str] = ()
    ) -> None:
        self.graph = Graph()
        self.convention = convention
        self.program = Program("main", self.graph, convention)
        self.functionalizer = Functionalizer(self.graph)
        self.weights = WeightTable(self.program)
        self.facts = ModuleFacts(module, irregular)
        self.locate = Locator()
        self.env: dict[fx.Node, Any] = {}

    def _add_module(self, module: nn.Module, without: Iterable[str] = ()) -> None:
        """Add the weights and modes of the original, without the weights below the paths `without`."""
        self.weights.add_module(module, without=without)
        self.program.module_modes, self.program.module_aliases = modules_of(module)

    def _adjust(self, op: Operation, node: fx.Node) -> None:
        """Apply what the original module says about an operation of a node; replace the node's result if needed."""
        result = self.facts.adjust(op, self.functionalizer)
        if result is not None:
            self.env[node] = self.functionalizer.fresh(result)

    def _lock_mode(self) -> None:
        """Record why the program must stay in its mode, if it must."""
        conflicts = self.functionalizer.sharing.conflicts(self.functionalizer.sources)
        self.program.mode_locked = mode_locked(conflicts)
