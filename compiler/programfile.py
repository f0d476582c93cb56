"""Programs as files: the text form, and the weights beside it; what is loaded is data, and no code of it runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compiler.capture.programs import check_program, names_shown
from compiler.codegen import Emitted
from compiler.codegen import emit as emit_program
from compiler.extras import import_extra
from compiler.savefiles import Writer, check_file, write_files
from compiler.usercode.overlap import memory_of
from compiler.usercode.tied import find_tied
from ir.errors import InputError
from ir.evaluate import evaluate
from ir.paths import checked_path
from ir.program import Program, Weight, WeightKind
from ir.spelling import did_you_mean, free_name
from ir.text.parser import parse_program
from ir.text.printer import print_program
from ir.verify import verify

SUFFIX = ".safetensors"
"""What the name of the file of weights ends with, in place of the `.gw` of the program's file or behind its name."""

TEXT_SUFFIX = ".gw"
"""What the name of a program's file usually ends with."""

_LAYOUT = "graphwright"
"""The key of that file's metadata that says how weights lie in memory that several share, or out of order.

A file that has it holds the weights of a program; one without it holds those of an original model.
"""
_DIGEST = "digest"
"""The key of that file's metadata that says which text it belongs to: one whose first line names the same digest."""
_TIED = re.compile(r"# weights: ([0-9a-f]+)\s*$", re.MULTILINE)
"""That line of the text."""
_MEMORY = "memory."
"""What the names of pieces of memory begin with."""
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)
"""The dtypes that every version of safetensors has; tensors of others are written as bytes."""

Weights = Mapping[str, torch.Tensor]


def emit(program: Program) -> Emitted:
    """Return the module of a program, and where its parameters come from.

    Args:
        program: a program whose weights have data; it is not changed, and shares their storage with the module.

    Raises:
        VerificationError: when the program breaks an invariant of the IR.
        InputError: when a weight or an opaque callable is missing.
        CodegenError: when an operation cannot be written as Python.
    """
    check_program(program)
    return emit_program(program)


# ---- writing ----


def save_program(program: Program, path: str | os.PathLike[str], *, weights: bool = True) -> None:
    """Write a program as text, and its weights to a file beside it: `net.gw` and `net.safetensors`.

    The text is that of `print_program`, to be read, compared and edited. Weights that share memory, or lie in another
    order than that of their dimensions, do so again when they are loaded. Opaque modules and functions are not saved:
    `load_program` is given them.

    The first line of the text says which weights it was saved with, so that it is not read with others: leave it there.

    Args:
        program: the program.
        path: the file of the text.
        weights: whether the weights are written.

    Raises:
        MissingPackageError: the extra `safetensors` is not installed.
        InputError: there is no such folder, a weight has no data, or is no plain tensor, or where the weights go there
            is a file that was not saved with a program.
        SaveError: a file cannot be written; then neither is.
    """
    file = _checked(path)
    check_file(file)
    text = print_program(program)
    writers: dict[Path, Writer] = {}
    if weights:
        safetensors = import_extra("safetensors.torch")
        tensors, layout = _packed(program)
        beside = _beside(file)
        if beside.is_file() and _LAYOUT not in (_metadata(beside) or {}):
            raise InputError(
                f"{beside} was not saved with a program, and the weights of {file.name} go there",
                remedy="give the program another name, or remove that file",
            )
        metadata = {_LAYOUT: json.dumps(layout), _DIGEST: _digest(tensors, layout)}
        text = f"# weights: {metadata[_DIGEST]}\n{text}"
        writers[beside] = lambda draft: safetensors.save_file(tensors, draft, metadata=metadata)
    writers[file] = lambda draft: draft.write_text(text, encoding="utf-8")
    write_files(writers)


def _beside(file: Path) -> Path:
    """Return the file of the weights of a program's file."""
    stem = file.stem if file.suffix == TEXT_SUFFIX else file.name
    return file.with_name(f"{stem}{SUFFIX}")


def _digest(tensors: Weights, layout: Mapping[str, Any]) -> str:
    digest = hashlib.blake2b(json.dumps(layout).encode(), digest_size=8)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _metadata(file: Path) -> Mapping[str, str] | None:
    """Return the metadata of a safetensors file, or None where it cannot be read."""
    safetensors = import_extra("safetensors")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError):
        return None


def _checked(path: str | os.PathLike[str]) -> Path:
    file = checked_path(path, "the file of the text")
    if file.suffix == SUFFIX:
        raise InputError(f"{file} is the name of a file of weights", remedy=f"name the text `{file.stem}.gw`")
    return file


def _packed(program: Program) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return contiguous tensors by name, and how weights lie in them where a weight is not just one of them.

    That is `[strides]` of a weight alone in its memory; `[memory, dtype, first element, sizes, strides]` of one that
    shares a piece of memory with others, or whose dtype such a file does not have.
    """
    data = {name: _plain(name, weight) for name, weight in program.weights.items()}
    alike: dict[Any, list[str]] = {}
    for name, tensor in data.items():
        alike.setdefault(memory_of(tensor) or name, []).append(name)
    packed: dict[str, torch.Tensor] = {}
    layout: dict[str, Any] = {}
    for names in alike.values():
        tensor = data[names[0]]
        if len(names) == 1 and _is_dense(tensor) and tensor.dtype in _DTYPES:
            packed[names[0]] = tensor.cpu().contiguous()
            if not tensor.is_contiguous():
                layout[names[0]] = [list(tensor.stride())]
            continue
        memory = free_name(f"{_MEMORY}{len(packed)}", program.weights.__contains__)
        packed[memory] = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage()).cpu()
        for name in names:
            each = data[name]
            layout[name] = [memory, _name_of(each.dtype), each.storage_offset(), [*each.shape], [*each.stride()]]
    return packed, layout


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _plain(name: str, weight: Weight) -> torch.Tensor:
    data = weight.data
    if data is None or data.is_meta:
        what = "no data" if data is None else "none: it is on the meta device"
        raise InputError(
            f"weight `{name}` has {what}", remedy="`save_program(program, path, weights=False)` writes the text alone"
        )
    _demand_plain(name, data, "convert it to a dense one before the model is transformed")
    return data.detach().resolve_conj().resolve_neg()


def _demand_plain(name: str, data: torch.Tensor, remedy: str) -> None:
    if data.layout is not torch.strided or type(data) not in (torch.Tensor, nn.Parameter) or data.is_quantized:
        raise InputError(
            f"weight `{name}` is {type(data).__qualname__} with layout {data.layout}, no plain tensor", remedy=remedy
        )


def _is_dense(tensor: torch.Tensor) -> bool:
    """Return whether the elements lie side by side, in any order of the dimensions."""
    reached = 1
    for stride, size in sorted((s, n) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1):
        if stride != reached:
            return tensor.numel() == 0
        reached *= size
    return True


# ---- reading ----


def load_program(
    path: str | os.PathLike[str],
    weights: Weights | str | os.PathLike[str] | None = None,
    *,
    opaques: Mapping[str, Callable[..., Any]] | None = None,
) -> Program:
    """Read a program, perhaps edited since, and its weights. No code of the files runs.

    Args:
        path: the file of the text.
        weights: tensors by name, as a `state_dict` of the original model has them, or a safetensors file; by default
            the one beside the text. What neither a `state_dict` nor the program's own file has is an error.
        opaques: modules and functions that opaque operations call, by name.

    Raises:
        MissingPackageError: the extra `safetensors` is not installed.
        ParseError: the text is ill-formed; the message points at the place.
        VerificationError: the program breaks an invariant of the IR.
        InputError: a file is missing, a weight is missing or has another shape or dtype than in the text, or the
            weights beside the text were saved with another one.
    """
    file = _checked(path)
    text = _read(file)
    program = parse_program(text)
    program.opaques.update(_known(opaques or {}, program))
    verify(program)
    if isinstance(weights, Mapping):
        _load(program, weights, _outside_of_state(program, file, text))
        return program
    if weights is None and not any(not weight.value.is_unused for weight in program.weights.values()):
        return program
    if weights is None:
        given, is_own = _tensors(weights_beside(file, text) or _beside(file))
    else:
        given, is_own = _tensors(checked_path(weights, "the file of weights"))
    if is_own:
        _load(program, {}, given)
    else:
        _load(program, given, _outside_of_state(program, file, text))
    return program


def weights_beside(file: Path, text: str) -> Path | None:
    """Return the file of weights beside that of a program with this text, or None where there is none.

    Raises:
        MissingPackageError: there is one, and the extra `safetensors` is not installed.
        InputError: it was saved with another text.
    """
    beside = _beside(file)
    if not beside.is_file():
        return None
    tied, metadata = _TIED.match(text), _metadata(beside)
    if metadata is not None and (tied and tied[1]) != metadata.get(_DIGEST):
        raise InputError(
            f"the weights in {beside} were not saved with the program in {file}",
            remedy=f"save both together (`save_program`), or name the file of weights if it is meant: {beside.name}",
        )
    return beside


def load_weights_file(program: Program, file: Path) -> None:
    """Give the weights of a program their data from a safetensors file, as `load_weights` does from a `state_dict`.

    Raises:
        MissingPackageError: the extra `safetensors` is not installed.
        InputError: the file is missing, or a weight is missing or has another shape or dtype than in the program.
    """
    given, is_own = _tensors(file)
    _load(program, {} if is_own else given, given if is_own else {})


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"there is no file {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as text: {error}") from error


def _known(opaques: Mapping[str, Callable[..., Any]], program: Program) -> Mapping[str, Callable[..., Any]]:
    for name in opaques:
        if name not in program.opaques:
            known = f"it calls {names_shown(list(program.opaques)) or 'none'}"
            raise InputError(
                f"the program calls nothing named {name!r}", remedy=did_you_mean(name, list(program.opaques), known)
            )
    return opaques


def _outside_of_state(program: Program, file: Path, text: str) -> Weights:
    """Return what the program's own file has of the weights that are in no `state_dict`."""
    constants = [w.name for w in program.weights.values() if w.kind is WeightKind.CONSTANT or not w.persistent]
    beside = weights_beside(file, text) if constants else None
    own = {} if beside is None else _tensors(beside)[0]
    return {name: own[name] for name in constants if name in own}


def load_weights(program: Program, weights: Weights) -> None:
    """Give the weights of a program their data, in place: all of them, or none when one does not fit.

    Args:
        program: the program.
        weights: tensors by their names in the original model, as its `state_dict` has them; they are not copied.
            Weights that rules made of others (a folded batch norm) are computed. Tied weights are found under any
            name, and other entries are left aside.

    Raises:
        InputError: when a weight is missing, has another shape or dtype than in the program, or no numbers, and when
            there are different ones under the names of a tied weight.
    """
    _load(program, weights, {})


def _load(program: Program, originals: Weights, own: Weights) -> None:
    """Load what has its own name, then what is one of the original's weights, or is computed from them."""
    found = {weight: _found(weight, originals, own) for weight in program.weights.values()}
    missing = [weight.name for weight, data in found.items() if data is None and not weight.value.is_unused]
    if missing:
        given = list(originals or own)
        raise InputError(
            f"no data was given for {names_shown(missing)}",
            location=program.location,
            remedy=did_you_mean(missing[0], given, f"names given are {names_shown(given) or 'none'}"),
        )
    made = {weight: _as_weight(weight, data) for weight, data in found.items() if data is not None}
    for weight, tensor in made.items():
        weight.data = tensor


def _found(weight: Weight, originals: Weights, own: Weights) -> torch.Tensor | None:
    """Return the tensor of a weight, which must be one of its type; None where there is none."""
    derivation, names = weight.derivation, (weight.name, *weight.aliases)
    data: Any = own.get(weight.name)
    if data is None and derivation is not None and all(source in originals for source in derivation.sources):
        with torch.no_grad():
            (data,) = evaluate(derivation.program, [originals[source] for source in derivation.sources])
    elif data is None and (derivation is None or weight.name not in derivation.sources):
        data = find_tied(names, originals)
    if data is None:
        return None
    if not isinstance(data, torch.Tensor):
        raise InputError(f"weight `{weight.name}` is given as {type(data).__qualname__}, not as a tensor")
    if data.is_meta:
        raise InputError(
            f"weight `{weight.name}` is given on the meta device, without numbers",
            remedy='load the checkpoint with `map_location="cpu"`',
        )
    _demand_plain(weight.name, data, "give a dense one: `tensor.to_dense()`")
    type_ = weight.type
    if (type_.shape is not None and tuple(data.shape) != type_.shape) or type_.dtype not in (None, data.dtype):
        raise InputError(
            f"weight `{weight.name}` is {type_} in the program, and {list(data.shape)} of {data.dtype} was given",
            remedy="give the weights of the model that the program was made of, or edit the types in the text",
        )
    return data


def _as_weight(weight: Weight, data: torch.Tensor) -> torch.Tensor:
    if weight.kind is WeightKind.PARAMETER:
        return nn.Parameter(data.detach(), requires_grad=weight.requires_grad)
    return data.detach().requires_grad_() if weight.requires_grad else data.detach()


def _tensors(file: Path) -> tuple[dict[str, torch.Tensor], bool]:
    """Return the tensors of a file by name, as they lay in memory, and whether they are the weights of a program."""
    if not file.is_file():
        raise InputError(
            f"there is no file of weights {file}",
            remedy="give them: `load_program(path, weights=model.state_dict())`, or the path of a safetensors file",
        )
    safetensors = import_extra("safetensors")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            packed = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
            text = (opened.metadata() or {}).get(_LAYOUT)
        return _unpacked(packed, {} if text is None else json.loads(text)), text is not None
    except (safetensors.SafetensorError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{file} is no file of weights that can be read: {error}") from error


def _unpacked(packed: Mapping[str, torch.Tensor], layout: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return tensors that lie in memory as `_packed` says."""
    found = dict(packed)
    pieces: dict[str, torch.UntypedStorage] = {}
    for name, place in layout.items():
        if len(place) == 1:
            found[name] = torch.empty_strided(packed[name].shape, place[0], dtype=packed[name].dtype)
            found[name].copy_(packed[name])
            continue
        memory, dtype, first, sizes, strides = place
        if memory not in pieces:
            pieces[memory] = found.pop(memory).clone().untyped_storage()
        storage = pieces[memory]
        whole = torch.empty(0, dtype=_dtype_named(dtype))
        whole = whole.set_(storage, 0, (storage.nbytes() // whole.element_size(),), (1,))
        found[name] = whole.as_strided(sizes, strides, first)
    return found


def _dtype_named(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return dtype
