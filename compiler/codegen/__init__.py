"""From a program back to a module: `emit(program)`."""

from compiler.codegen.emit import Emitted, emit
from compiler.codegen.strides import restore_output_strides

__all__ = ["Emitted", "emit", "restore_output_strides"]
