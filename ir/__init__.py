"""What a program is: types, values, operations, graphs, text form, verifier, reference evaluation.

Importing any module of this package lays the rows of the op table over the operators, before the first is used,
and defines the operators of our own.
"""

import ir.nn_ops
import ir.optable  # noqa: F401 - for its effect
