"""What a program is: for patterns and passes of your own."""

from ir.attributes import Ref
from ir.builder import Builder
from ir.compare import graphs_equal, programs_equal
from ir.core import Graph, Operation, Value
from ir.evaluate import evaluate
from ir.locations import Location
from ir.opdef import OpDef, Trait, get_opdef
from ir.program import Program, SymbolRange, Weight, WeightKind, copy_program
from ir.text.parser import parse_program
from ir.text.printer import print_graph, print_operation, print_program
from ir.types import ScalarType, TensorType
from ir.verify import verify

__all__ = [
    "Builder",
    "Graph",
    "Location",
    "OpDef",
    "Operation",
    "Program",
    "Ref",
    "ScalarType",
    "SymbolRange",
    "TensorType",
    "Trait",
    "Value",
    "Weight",
    "WeightKind",
    "copy_program",
    "evaluate",
    "get_opdef",
    "graphs_equal",
    "parse_program",
    "print_graph",
    "print_operation",
    "print_program",
    "programs_equal",
    "verify",
]
