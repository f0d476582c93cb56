"""From a program back to a module: `emit(program)`."""

from compiler.codegen.emit import Emitted, emit

__all__ = ["Emitted", "emit"]
