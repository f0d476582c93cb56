"""From a traced program to an ONNX model whose names are those of the user's model."""

from __future__ import annotations

import ast
import json
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import sympy
import torch
from torch.export import ExportedProgram

from compiler.extras import import_extra
from compiler.onnx.assumptions import check_assumptions, dynamic_sizes, noted_guards
from compiler.onnx.interface import Interface, interface_of
from compiler.onnx.registry import mended_exporter
from compiler.onnx.simplify import simplify
from compiler.onnx.traced import WEIGHT, Kernels, operation_of, outputs_of, step_in, trace
from ir.core import Operation, Value
from ir.errors import CodegenError
from ir.expressions import format_expression
from ir.program import Program
from ir.spelling import free_name

OPSET = 20
"""The version of ONNX's operators: the first with Gelu; files of version 21 with int8 do not load everywhere."""

METADATA = "graphwright"
"""The key of the model's metadata that says how its inputs and outputs are arguments and results of the module."""

_SCOPES = "pkg.torch.onnx.name_scopes"
_FX_NODE = "pkg.torch.onnx.fx_node"
_SIZES = re.compile(r"\[target=(torch\.ops\.aten\.sym_|torch\.sym_|math\.|operator\.(?!getitem))")
"""What computes sizes: it may stand in the operation whose result has them."""
_MAX_FOLDED = 1 << 28
"""Elements of the largest weight that the exporter may transpose or convert at once."""


@attrs.frozen(eq=False)
class OnnxModel:
    """A program as an ONNX model in memory."""

    model: Any
    """The `onnx_ir.Model`."""
    program: Program
    """The program without regions that it computes."""
    interface: Interface
    names: Mapping[Value, str]
    """Value of the program -> its name in the model, for those that exist in both."""


def write_model(program: Program, kernels: Kernels, translations: Mapping[Any, Callable[..., Any]]) -> OnnxModel:
    """Return a program without regions as an ONNX model.

    Args:
        program: what `inference_program` returns.
        kernels: name of an operator of ours -> the operator of PyTorch that stands for it in the trace.
        translations: operator of PyTorch -> the function that writes it with operators of ONNX.

    Raises:
        MissingPackageError: the extra `onnx` is not installed.
        CodegenError: an operation cannot be written in ONNX.
    """
    import_extra("onnx")
    import_extra("onnxscript")
    interface = interface_of(program)
    with noted_guards(program) as places:
        exported = trace(program, kernels)
        model = _exported_model(exported, program, interface, translations)
    check_assumptions(exported, program, places)
    model.producer_name = "graphwright"
    model.producer_version = None
    model.graph.name = program.name
    _check_types(model, program)
    names = _rename(model, program, interface)
    _check_results(model, program, names)
    _set_shapes(model, program, interface, exported)
    model.metadata_props.clear()
    model.metadata_props[METADATA] = json.dumps(interface.as_json())
    return OnnxModel(model, program, interface, names)


def _exported_model(
    exported: ExportedProgram, program: Program, interface: Interface, translations: Mapping[Any, Callable[..., Any]]
) -> Any:
    try:
        with warnings.catch_warnings(), mended_exporter():
            warnings.simplefilter("ignore")
            written = torch.onnx.export(
                exported,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                optimize=False,
                input_names=list(interface.inputs),
                output_names=list(interface.outputs),
                custom_translation_table=dict(translations),
            )
            assert written is not None
            simplify(written.model)
    except Exception as error:
        op = _blamed(error, program)
        raise CodegenError(
            f"{'the program' if op is None else op.name} cannot be written in ONNX {OPSET}: {_first_line(error)}",
            location=program.location if op is None else op.location,
            remedy="rewrite it with operators that ONNX has, or leave that part out of the file",
        ) from error
    return written.model


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def _blamed(error: BaseException, program: Program) -> Operation | None:
    """Return the operation that the exporter was at, or whose kernel its error names."""
    operations = list(program.graph.operations())
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        op = operation_of((frame for frame, _ in traceback.walk_tb(cause.__traceback__)), operations)
        if op is not None:
            return op
        texts.append(str(cause))
        cause = cause.__cause__
    named = re.findall(r"torch\.ops\.(\w+)\.(\w+)|\baten[.:]+(\w+)", "\n".join(texts))
    for function in (match[1] or match[2] for match in named):
        for op in operations:
            if op.opdef.short_name == function:
                return op
    return None


def _check_types(model: Any, program: Program) -> None:
    """Refuse operands of dtypes that an operator of ONNX does not take: the exporter writes them all the same."""
    schemas = import_extra("onnx").defs
    operations = list(program.graph.operations())
    for node in model.graph:
        if node.domain:
            continue
        formals = schemas.get_schema(node.op_type, OPSET).inputs
        for number, value in enumerate(node.inputs):
            formal = formals[min(number, len(formals) - 1)]
            if value is None or value.dtype is None or f"tensor({value.dtype.name.lower()})" in formal.types:
                continue
            step = _step_of(node)
            op = None if step is None else operations[step]
            raise CodegenError(
                f"{'the program' if op is None else op.name} cannot be written in ONNX {OPSET}: its operator "
                f"{node.op_type} takes no {value.dtype.name.lower()} as `{formal.name}`",
                location=program.location if op is None else op.location,
                remedy="convert the model: `transform(model.float(), inputs)`"
                if value.dtype.is_floating_point()
                else "cast the operand in `forward`: `x.int()`, `x.float()`",
            )


def _check_results(model: Any, program: Program, names: Mapping[Value, str]) -> None:
    """Refuse a file in which a value has another dtype than in the program."""
    adapters = import_extra("onnx_ir.tensor_adapters")
    written = {value.name: value.dtype for value in _values(model)}
    outputs = set(outputs_of(program))
    for value, name in names.items():
        dtype, found, op = value.tensor_type.dtype, written.get(name), value.defining_op
        if dtype is not None and dtype.is_complex:  # two numbers in a file: inside of it, both are meant
            if op is None or value in outputs:
                which = "result" if value in outputs else f"input `{value.name}`"
                raise CodegenError(
                    f"the {which} is {dtype}, which ONNX does not have",
                    location=program.location if op is None else op.location,
                    remedy="let the model take and return pairs of numbers: `torch.view_as_real`, `view_as_complex`",
                )
            continue
        if dtype is None or found is None or adapters.to_torch_dtype(found) == dtype:
            continue
        raise CodegenError(
            f"{'the program' if op is None else op.name} cannot be written in ONNX {OPSET}: PyTorch's exporter makes "
            f"{found.name.lower()} of it, and it is {dtype}",
            location=program.location if op is None else op.location,
            remedy="cast its operands to float32 in the model, and the result back, or leave that part out of the file",
        )


# ---- names ----


def _rename(model: Any, program: Program, interface: Interface) -> dict[Value, str]:
    """Give nodes, values and initializers the names of modules and weights; return those of the program's values."""
    operations = list(program.graph.operations())
    weights = list(program.weights.values())
    taken = {*interface.inputs, *interface.outputs}
    outputs = {id(value): name for value, name in zip(model.graph.outputs, interface.outputs, strict=True)}
    names: dict[Value, str] = dict(zip(program.graph.inputs, interface.inputs, strict=True))
    for value, name in zip(model.graph.inputs, interface.inputs, strict=True):
        value.name = name

    def fresh(name: str) -> str:
        unique = free_name(name, taken.__contains__)
        taken.add(unique)
        return unique

    for value in list(model.graph.initializers.values()):
        if value.name.startswith(WEIGHT) and value.name.removeprefix(WEIGHT).isdigit():
            _rename_initializer(model, value, fresh(weights[int(value.name.removeprefix(WEIGHT))].name))
    known = {id(value) for value in model.graph.initializers.values() if value.name in taken}
    last: dict[int, Any] = {}
    nodes: set[str] = set()
    for node in model.graph:
        step = _step_of(node)
        op = None if step is None else operations[step]
        is_of_sizes = _SIZES.search(node.metadata_props.get(_FX_NODE, "")) is not None
        node.name = free_name(f"{_path(op, program)}/{node.op_type}", nodes.__contains__)
        nodes.add(node.name)
        node.metadata_props.clear()
        node.doc_string = None
        if op is not None and op.location.source:
            node.metadata_props["source"] = op.location.source
        for number, value in enumerate(node.outputs):
            suffix = "" if len(node.outputs) == 1 else f".{number}"
            value.name = outputs.get(id(value)) or fresh(f"{node.name}{suffix}")
        for number, value in enumerate(node.inputs):
            if value is not None and value.is_initializer() and id(value) not in known:
                known.add(id(value))
                _rename_initializer(model, value, fresh(f"{node.name}.{number}"))
        if step is not None and not is_of_sizes:
            last[step] = node
    for step, node in last.items():
        if len(node.outputs) == len(operations[step].results):
            names.update(zip(operations[step].results, [value.name for value in node.outputs], strict=True))
    names.update(zip(outputs_of(program), interface.outputs, strict=True))
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    return names


def _rename_initializer(model: Any, value: Any, name: str) -> None:
    model.graph.initializers.pop(value.name)
    value.name = name
    if value.const_value is not None:
        value.const_value.name = name
    model.graph.initializers[name] = value


def _step_of(node: Any) -> int | None:
    """Return the number of the operation that a node was written for."""
    text = node.metadata_props.get(_SCOPES)
    return step_in(ast.literal_eval(text) if text else ())


def _path(op: Operation | None, program: Program) -> str:
    return program.name if op is None else op.location.module_path or program.name


# ---- shapes ----


def _set_shapes(model: Any, program: Program, interface: Interface, exported: ExportedProgram) -> None:
    """Write symbolic sizes as the program does: `batch`, `2*seq`."""
    onnx_ir = import_extra("onnx_ir")
    inner = dict(_inner_symbols(exported, program))
    pattern = re.compile(r"\b[su]\d+\b")
    for value in _values(model):
        if value.shape is not None:
            dims = [dim if isinstance(dim, int) else _respelled(dim.value, pattern, inner) for dim in value.shape]
            value.shape = onnx_ir.Shape(dims)
    ends = [*zip(model.graph.inputs, program.graph.inputs, strict=True)]
    ends += zip(model.graph.outputs, outputs_of(program), strict=True)
    for value, given in ends:
        type_ = given.tensor_type
        if type_.shape is not None and None not in type_.shape:
            value.shape = onnx_ir.Shape([d if isinstance(d, int) else _text(d) for d in type_.shape])


def _text(dim: Any) -> str:
    return format_expression(dim)


def _respelled(text: str | None, pattern: re.Pattern[str], inner: Mapping[str, str]) -> str | None:
    """Return a size over our symbols; None, for an unknown one, where it has others."""
    if text is None or any(name not in inner for name in pattern.findall(text)):
        return None
    return pattern.sub(lambda found: inner[found[0]], text)


def _inner_symbols(exported: ExportedProgram, program: Program) -> Iterator[tuple[str, str]]:
    """Yield PyTorch's name and ours of each symbol that is a size of an input."""
    for size, dim in dynamic_sizes(exported, program):
        if isinstance(dim, sympy.Symbol):
            yield str(size.node.expr), dim.name


def _values(model: Any) -> Iterator[Any]:
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs
