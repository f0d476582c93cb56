"""What is known of an operator stands in its row: no other place below `fuzz` lists operators by name."""

from __future__ import annotations

import ast
import re

from tests.test_layout import sources

_OPERATOR = re.compile(r"(aten|nn)(\.\w+)+")

TABLES = {
    "ir/ops/nn_ops.py:MULTIHEAD_ATTENTION": "the definition of the operator",
    "passes/convert/classifier.py:_FLATTENS": "two forms of one pattern",
    "passes/convert/layer_norms.py:_VARIANCES": "two forms of one pattern",
    "passes/convert/layer_norms.py:_VARIANCES_AND_MEANS": "two forms of one pattern",
    "passes/fuse/attention.py:_MATMULS": "two forms of one pattern",
    "passes/fuse/attention.py:_SCALINGS": "two forms of one pattern",
    "passes/fuse/dense.py:_GATES": "forms of one pattern",
    "passes/fuse/norms.py:_EXPONENTS": "forms of one pattern",
    "passes/fuse/base.py:FUSED_ACTIVATIONS": "what targets fuse, which is no fact about the operators",
    "passes/fuse/base.py:CLIPPING_ACTIVATIONS": "two forms of one pattern",
    "passes/quant/signs.py:_NEVER_NEGATIVE": "what only the choice between signed and unsigned integers asks",
    "passes/quant/signs.py:_BOUNDS": "what only the choice between signed and unsigned integers asks",
    "passes/quant/signs.py:_AS_OPERANDS": "what only the choice between signed and unsigned integers asks",
    "passes/quant/tables/floats.py:IN_FLOAT": "what targets want in integers, which is no fact about the operators",
    "passes/quant/tables/onnxruntime.py:ONNXRUNTIME": "what a target wants in integers",
    "passes/quant/tables/openvino.py:OPENVINO": "what a target wants in integers",
    "passes/quant/tables/tensorrt.py:TENSORRT": "what a target wants in integers",
    "compiler/onnx/integers.py:_CLIPS": "where an operator has the bounds of its range",
    "compiler/onnx/formulas.py:FORMULAS": "what PyTorch's exporter writes in another way than PyTorch computes it",
    "compiler/onnx/scatter.py:SCATTERS": "what PyTorch's exporter writes in another way than PyTorch computes it",
    "compiler/lower/mode_steps.py:_OPERATORS": "the functions of PyTorch that call them",
    "compiler/lower/fx/operators.py:PIECES": "how many results an operator has in a graph without types",
    "compiler/codegen/functions.py:_METHODS": "emission: operators that read best as methods",
    "compiler/codegen/functions.py:_DROPOUT_FUNCTIONS": "emission: functions of PyTorch",
    "compiler/codegen/modules.py:_DROPOUTS": "emission: classes of modules",
    "compiler/codegen/regions.py:_OPERATORS": "emission: what the code of fused modules calls",
    "compiler/codegen/scope.py:_SAMPLING": "emission: what takes the dtype of what it samples for",
}
"""Module-level tables of operators, each with what it says that no column could."""


def operator_tables(files: dict[str, str]) -> dict[str, list[str]]:
    """Module-level names that are given two or more names of operators -> these."""
    found: dict[str, list[str]] = {}
    for path, text in files.items():
        for node in ast.parse(text).body:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            constants = [each.value for each in ast.walk(node.value) if isinstance(each, ast.Constant)]
            names = [each for each in constants if isinstance(each, str) and _OPERATOR.fullmatch(each)]
            if len(names) > 1:
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                found[f"{path}:{ast.unparse(target)}"] = names
    return found


def test_operators_are_listed_in_the_table_only() -> None:
    found = operator_tables(sources("ir", "passes", "compiler"))
    assert sorted(found) == sorted(TABLES), "say it in a column of ir/ops/table.py, and ask with operators_with()"


def test_every_form_of_a_table_is_found() -> None:
    files = {
        "a.py": 'A = ("aten.relu", "aten.gelu")',
        "b.py": 'B: frozenset[str] = frozenset({"aten.relu", "nn.opaque"})',
        "c.py": 'C = {"aten.add.Tensor": 1} | dict.fromkeys(("aten.mul.Tensor",))',
        "d.py": 'D = "aten.relu"\nE = ("relu", "gelu")\ndef f():\n    g = ("aten.relu", "aten.gelu")',
        "e.py": 'F = Example("aten.relu(%x)", "aten.gelu(%x)")',
    }
    assert sorted(operator_tables(files)) == ["a.py:A", "b.py:B", "c.py:C"]
