"""The program that a file holds: that of a module in its present state, for inference, without regions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from compiler.emitted.graphmodule import Container, EmittedModule
from compiler.onnx.integers import store_integers
from ir.copying import copy_into
from ir.core import Graph, Operation, Value
from ir.errors import InputError
from ir.evaluate import evaluate
from ir.opdef import Trait
from ir.program import Program, Weight, WeightKind, copy_program, weight_of
from ir.quant.dialect import DEQUANTIZE, QUANTIZE
from ir.types import ScalarType, TensorType
from passes.fold.batch_norm import FoldBatchNorm
from passes.manager.manager import PassContext

_REMEDY_EVAL = "call `result.model.eval()` first; a file holds what the model computes in eval mode"


def inference_program(program: Program, module: nn.Module) -> Program:
    """Return a copy of a program that computes what its emitted module now computes in eval mode.

    Fused regions are replaced by what is in them, batch norms are folded into the layers before them, and the weights
    are those of the module.

    Args:
        program: the program.
        module: the module it was emitted as, which may have been trained, or loaded from a checkpoint, since.

    Raises:
        InputError: when the module is in training mode, has another dtype than the program, writes its state or its
            inputs, or draws random numbers.
    """
    _check_modes(module)
    _check_effects(program)
    twin = copy_program(program)
    for name, data in current_weights(program, module).items():
        _set_data(twin.weights[name], data)
    _inline_regions(twin)
    for op in twin.graph.operations():
        _fix_mode(op)
        _check_projection(op)
    _check_quantizers(twin)
    _split_tied_weights(twin)
    store_integers(twin)
    FoldBatchNorm().run(twin, PassContext())
    return twin


def _split_tied_weights(program: Program) -> None:
    """Give transposed convolutions weights of their own, where a convolution reads them as well.

    OpenVINO packs a weight once, for the first of its readers.
    """
    for weight in list(program.weights.values()):
        value, data = weight.value, weight.data
        if data is None or not any(op.opdef.has(Trait.CONV) for op in value.users):
            continue
        for op in [op for op in value.users if op.opdef.has(Trait.CONV_TRANSPOSE) and op.operands[1] is value]:
            name = program.unique_weight_name(f"{weight.name}_transposed")
            copied = Weight(name, WeightKind.CONSTANT, weight.type, data.detach().clone(), is_folded=True)
            op.set_operand(1, program.add_weight(copied))


def _check_modes(module: nn.Module) -> None:
    training = [path for path, each in module.named_modules() if each.training and not isinstance(each, Container)]
    if module.training or training:
        where = f"`{training[0]}` is" if training and training[0] else "the model is"
        raise InputError(f"{where} in training mode, and an ONNX file is for inference", remedy=_REMEDY_EVAL)


def _check_effects(program: Program) -> None:
    for mutation in program.convention.mutations:
        if mutation.buffer is not None:
            raise InputError(
                f"each call writes the buffer `{mutation.buffer}`, and an ONNX file has no state",
                location=program.weights[mutation.buffer].value.users[0].location
                if mutation.buffer in program.weights and program.weights[mutation.buffer].value.users
                else program.location,
                remedy="let `forward` take the old value as an argument and return the new one",
            )
        raise InputError(
            f"each call writes its argument number {mutation.input}, and a runtime never writes its inputs",
            location=program.location,
            remedy="let `forward` return the new value",
        )
    for value in program.graph.inputs:
        if isinstance(value.type, ScalarType):
            raise InputError(
                f"the argument `{value.name}` is a number that varies from call to call, and a file takes tensors only",
                location=program.location,
                remedy="pass a tensor of rank 0, or leave it out of `dynamic_shapes` so that it is fixed",
            )
        if not isinstance(value.type, TensorType) or not value.type.is_known:
            raise InputError(
                f"the type of the input `{value.name}` is not fully known: {value.type}",
                location=program.location,
                remedy="transform the model with example inputs",
            )


def current_weights(program: Program, module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors that a program's emitted module now has, by the names of the program's weights.

    Raises:
        InputError: when one has another dtype than in the program, or no data.
    """
    names: Mapping[str, str] = getattr(module, "_weight_names", {}) if isinstance(module, EmittedModule) else {}
    state = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    found = {name: state[key].detach() for key, name in names.items() if key in state}
    for name, weight in program.weights.items():
        derivation = weight.derivation
        if derivation is not None and name not in found and found.keys() >= set(derivation.sources):
            # computed in `forward`: the module has its sources only
            (found[name],) = evaluate(derivation.program, [found[source] for source in derivation.sources])
    for name, weight in program.weights.items():
        data = found.get(name, weight.data)
        if weight.value.is_unused or data is None:
            continue
        if data.is_meta:
            raise InputError(f"the weight `{name}` has no data: it is on the meta device", remedy="load the weights")
        if data.dtype != weight.type.dtype:
            raise InputError(
                f"the weight `{name}` was converted to {data.dtype} after the model was transformed; it was of "
                f"{weight.type.dtype}",
                remedy="convert the original model, and transform that",
            )
    return {name: data for name, data in found.items() if name in program.weights}


def own_current_weights(program: Program, module: nn.Module) -> None:
    """Give a program copies of the tensors that its emitted module now has.

    Raises:
        InputError: as `current_weights`.
    """
    current = current_weights(program, module)
    for name, weight in program.weights.items():
        data = current.get(name, weight.data)
        if data is None or weight.kind is WeightKind.CONSTANT:
            continue
        copied = data.detach().clone(memory_format=torch.preserve_format)
        is_parameter = isinstance(weight.data, nn.Parameter)
        weight.data = nn.Parameter(copied, requires_grad=weight.requires_grad) if is_parameter else copied


def _check_quantizers(program: Program) -> None:
    """Refuse weights that are no numbers, and scales that are not positive: as integers they would look like others."""
    for op in program.graph.operations():
        if op.opdef not in (QUANTIZE, DEQUANTIZE):
            continue
        value, scale = weight_of(op.operands[0]), weight_of(op.input("scale"))
        for weight, holds in ((value, _is_finite), (scale, _is_positive)):
            if weight is not None and weight.data is not None and not holds(weight.data):
                what = "NaN or an infinity" if holds is _is_finite else "a scale that is no positive number"
                raise InputError(
                    f"the weight `{weight.name}` holds {what}, and integers do not show that",
                    location=op.location,
                    remedy="the training has diverged: load an earlier checkpoint",
                )


def _is_finite(data: torch.Tensor) -> bool:
    return not data.is_floating_point() or bool(torch.isfinite(data).all())


def _is_positive(data: torch.Tensor) -> bool:
    return bool((torch.isfinite(data) & (data > 0)).all())


def _set_data(weight: Weight, data: torch.Tensor) -> None:
    is_parameter = isinstance(weight.data, nn.Parameter)
    detached = data.detach().cpu()
    weight.data = nn.Parameter(detached, requires_grad=weight.requires_grad) if is_parameter else detached


def _inline_regions(program: Program) -> None:
    """Replace each fused region by the operations in it."""
    old = program.graph
    graph = Graph([(value.name, value.type) for value in old.inputs])
    mapping: dict[Value, Value] = {weight.value: weight.value for weight in program.weights.values()}
    mapping.update(zip(old.inputs, graph.inputs, strict=True))
    for op in list(old.operations()):
        _append(op, graph, mapping)
    graph.set_outputs([None if value is None else mapping[value] for value in old.outputs])
    graph.return_op.location = old.return_op.location
    old.set_outputs(())
    for op in reversed(list(old.operations())):
        old.erase(op)
    program.graph = graph


def _append(op: Operation, graph: Graph, mapping: dict[Value, Value]) -> None:
    if op.body is None:
        copy_into(op, graph, mapping)
        return
    for inner, given in zip(op.body.inputs, op.operands, strict=True):
        if given is not None:
            mapping[inner] = mapping[given]
    for each in op.body.operations():
        _append(each, graph, mapping)
    for result, output in zip(op.results, op.body.outputs, strict=True):
        if output is not None:
            mapping[result] = mapping[output]


def _fix_mode(op: Operation) -> None:
    """Put an operation that follows the mode of its module into eval mode, and refuse what stays in training."""
    by_flag = op.opdef.training is None and op.attributes.get("training") is True  # torch.native_batch_norm
    if not (op.in_training or op.is_random or by_flag):
        return
    if op.name == "aten.instance_norm" and op.operand("running_mean") is None:
        return  # the statistics are those of each sample, in both modes
    if op.opdef.training is not None and op.attributes.get("follows_mode", False):
        flag = op.attributes[op.opdef.training]
        op.set_attribute(op.opdef.training, type(flag)(0))  # a probability, or whether it trains
        return
    what = "draws random numbers" if op.is_random else "computes with the statistics of each batch"
    raise InputError(
        f"{op.name} {what} in eval mode too, which a runtime does not do as PyTorch does",
        location=op.location,
        remedy="let it follow the mode of its module: `training=self.training`",
    )


def _check_projection(op: Operation) -> None:
    """Refuse an LSTM whose hidden state is projected: each direction of a layer has one weight more."""
    if op.name != "aten.lstm.input":
        return
    attributes = op.attributes
    layers = attributes["num_layers"] * (2 if attributes["bidirectional"] else 1)
    if len(op.operand_list("params")) > layers * (4 if attributes["has_biases"] else 2):
        raise InputError(
            "the hidden state is projected (proj_size), which the LSTM of ONNX does not do",
            location=op.location,
            remedy="leave that layer out of the file",
        )
