"""What a program is: types, values, operations, graphs, text form, verifier, reference evaluation.

Importing any module of this package lays the rows of the op table over the operators, before the first is used,
and defines the operators of our own.
"""

import ir.ops.nn_ops
import ir.ops.table
import ir.quant.dialect  # noqa: F401 - for its effect
