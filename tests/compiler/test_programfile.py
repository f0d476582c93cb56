"""Programs as files, edited as text, and emitted again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from graphwright import (
    InputError,
    ParseError,
    Rewriter,
    TransformResult,
    ValidationError,
    VerificationError,
    emit,
    load_program,
    load_weights,
    parse_pipeline,
    save_program,
    transform,
)
from graphwright.ir import parse_program, programs_equal

pytest.importorskip("safetensors", reason="the extra `safetensors` is not installed")

FOLDED = "canonicalize,fold-batch-norm,fuse{patterns=tensorrt.fusions}"


class Net(nn.Module):
    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        self.tied = nn.Linear(8, 4)
        self.tied.weight = self.head.weight
        self.register_buffer("table", torch.randn(4), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(x) * self.tied(x) + self.table + torch.tensor([1.0, 2.0, 3.0, 4.0])


def make(pipeline: str | None = None) -> tuple[Net, torch.Tensor, TransformResult]:
    torch.manual_seed(0)
    model = Net().eval()
    nn.init.normal_(model.norm.weight)
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    model.conv.weight.data = model.conv.weight.data.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8)
    return model, x, transform(model, (x,), pipeline=None if pipeline is None else parse_pipeline(pipeline))


@pytest.mark.parametrize("pipeline", [None, FOLDED])
def test_a_saved_program_is_the_same_when_it_is_loaded(tmp_path: Path, pipeline: str | None) -> None:
    _, x, result = make(pipeline)
    save_program(result.program, tmp_path / "net.gw")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.gw", "net.safetensors"]
    loaded = load_program(tmp_path / "net.gw")
    assert programs_equal(loaded, result.program) is None
    for name, weight in loaded.weights.items():
        mine, theirs = weight.data, result.program.weights[name].data
        assert mine is not None and theirs is not None
        assert torch.equal(mine, theirs) and mine.stride() == theirs.stride()
        assert mine.requires_grad == theirs.requires_grad and isinstance(mine, nn.Parameter) == (
            weight.kind.value == "parameter"
        )
    assert torch.equal(emit(loaded).module(x), result.model(x))


@pytest.mark.parametrize("pipeline", [None, FOLDED])
@pytest.mark.parametrize("as_file", [False, True])
def test_weights_come_from_a_checkpoint_of_the_original(tmp_path: Path, pipeline: str | None, as_file: bool) -> None:
    model, x, result = make(pipeline)
    save_program(result.program, tmp_path / "net.gw")
    other, _, _ = make()
    nn.init.normal_(other.conv.weight)
    other.table = model.table
    given: Any = other.state_dict()
    if as_file:
        safetensors = pytest.importorskip("safetensors.torch")
        given = tmp_path / "other.safetensors"
        safetensors.save_file({k: v.contiguous() for k, v in other.state_dict().items() if k != "tied.weight"}, given)
    loaded = load_program(tmp_path / "net.gw", given)
    expected = other(x)
    assert not torch.allclose(expected, model(x))
    torch.testing.assert_close(emit(loaded).module(x), expected)


def test_weights_are_read_with_the_text_they_were_saved_with(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="the extra `safetensors` is not installed")
    _, x, result = make()
    other, _, _ = make()
    nn.init.normal_(other.conv.weight)
    changed = transform(other, (x,))
    save_program(result.program, tmp_path / "net.before")  # two files of weights, not one
    save_program(changed.program, tmp_path / "net.after")
    assert torch.equal(emit(load_program(tmp_path / "net.before")).module(x), result.model(x))
    path = tmp_path / "net.gw"
    save_program(result.program, path)
    for write in (
        lambda: save_program(changed.program, path, weights=False),
        lambda: path.write_text((tmp_path / "net.after").read_text()),
    ):
        write()
        with pytest.raises(InputError, match="were not saved with the program in") as caught:
            load_program(path)
        assert "name the file of weights if it is meant: net.safetensors" in str(caught.value)
    assert torch.equal(emit(load_program(path, tmp_path / "net.safetensors")).module(x), result.model(x))


def test_weights_that_are_no_programs_are_not_overwritten(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="the extra `safetensors` is not installed")
    _, _, result = make()
    safetensors.save_file({"mine": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors was not saved with a program"):
        save_program(result.program, tmp_path / "model.gw")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    save_program(result.program, tmp_path / "net.gw")
    save_program(result.program, tmp_path / "net.gw")


def test_text_that_was_edited_runs(tmp_path: Path) -> None:
    _, x, result = make()
    save_program(result.program, tmp_path / "net.gw")
    text = (tmp_path / "net.gw").read_text(encoding="utf-8")
    assert "aten.relu(" in text
    (tmp_path / "net.gw").write_text(text.replace("aten.relu(", "aten.sigmoid("), encoding="utf-8")
    edited = load_program(tmp_path / "net.gw")
    again = transform(edited, (x,), validate="final")
    assert again.counts() == {}
    model, _, _ = make()

    class Other(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.sigmoid(self.norm(self.conv(x))).mean((2, 3))
            return self.head(x) * self.tied(x) + self.table + torch.tensor([1.0, 2.0, 3.0, 4.0])

    other = Other().eval()
    other.load_state_dict(model.state_dict())
    other.table = model.table
    torch.testing.assert_close(again.model(x), other(x))


@pytest.mark.parametrize("validate", ["off", "final", "each"])
def test_a_program_is_transformed(validate: str) -> None:
    model, x, result = make("canonicalize")
    before = str(result.program)
    again = transform(result.program, (x,), validate=validate)
    assert again.counts() and str(result.program) == before
    torch.testing.assert_close(again.model(x), model(x))
    converted = again.parameter_map.convert(model.state_dict())
    again.model.load_state_dict(converted)
    folded = transform(again.program, (x,), validate=validate, pipeline=parse_pipeline("fold-batch-norm"))
    torch.testing.assert_close(folded.model(x), model(x))


def test_a_program_without_inputs_is_not_checked() -> None:
    _, x, result = make("canonicalize")
    again = transform(result.program)
    assert [remark for remark in again.remarks if remark.kind == "unchecked"]
    torch.testing.assert_close(again.model(x), result.model(x))


def test_a_wrong_pass_on_a_program_is_found() -> None:
    _, x, result = make("canonicalize")

    class Wrong(type(parse_pipeline("canonicalize").passes[0])):  # type: ignore[misc]
        def run(self, program: Any, context: Any) -> None:
            relu = next(op for op in program.graph.operations() if op.name == "aten.relu")
            Rewriter(program).replace_value(relu.result, relu.operands[0])

    pipeline = parse_pipeline("canonicalize")
    with pytest.raises(ValidationError, match="does not do what the original does"):
        transform(result.program, (x,), pipeline=pipeline.insert_after("canonicalize", Wrong()))


def test_weights_that_share_memory_share_it_again(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("top", whole[:3])
            self.register_buffer("turned", whole[3:].T)
            self.register_buffer("steps", torch.zeros(8)[::2])
            self.register_buffer("wide", torch.zeros(1, 4).expand(3, 4))
            self.register_buffer("imaginary", torch.ones(3, 4, dtype=torch.complex128))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.top @ self.turned + self.steps.sum() + self.wide.sum() + self.imaginary.real.sum()

    model, x = Views().eval(), torch.randn(3, 4)
    result = transform(model, (x,))
    save_program(result.program, tmp_path / "net.gw")
    loaded = load_program(tmp_path / "net.gw")
    data = {name: weight.data for name, weight in loaded.weights.items()}
    for name, tensor in data.items():
        original = dict(model.named_buffers())[name]
        assert tensor is not None and torch.equal(tensor, original) and tensor.stride() == original.stride(), name
    top, turned = data["top"], data["turned"]
    assert top is not None and turned is not None
    assert top.untyped_storage().data_ptr() == turned.untyped_storage().data_ptr()
    assert torch.equal(emit(loaded).module(x), model(x))


def test_opaque_modules_are_given_again(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    model, x = nn.Sequential(Odd(), nn.ReLU()).eval(), torch.randn(3)
    result = transform(model, (x,), leaf_modules=["0"])
    save_program(result.program, tmp_path / "net.gw")
    loaded = load_program(tmp_path / "net.gw")
    with pytest.raises(InputError, match=r"calls `0`, and there is no such module[\s\S]*opaques=\{'0': module\}"):
        emit(loaded)
    loaded = load_program(tmp_path / "net.gw", opaques={"0": model[0]})
    assert torch.equal(emit(loaded).module(x), model(x))
    with pytest.raises(InputError, match="calls nothing named '1'"):
        load_program(tmp_path / "net.gw", opaques={"1": model[0]})


def test_a_program_without_data_is_neither_emitted_nor_transformed() -> None:
    model, x, result = make()
    parsed = parse_program(str(result.program))
    for call in (emit, transform):
        with pytest.raises(InputError, match=r"without data[\s\S]*load_weights\(program, state_dict\)"):
            call(parsed)
    everything = {
        **model.state_dict(),
        **{n: w.data for n, w in result.program.weights.items() if n not in model.state_dict()},
    }
    load_weights(parsed, everything)  # as the remedy says
    assert torch.equal(emit(parsed).module(x), result.model(x))


def _edit(change: Callable[[str], str]) -> Callable[[Path], Any]:
    def load(path: Path) -> Any:
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
        return load_program(path)

    return load


def _bad_weights(path: Path) -> Any:
    path.with_suffix(".safetensors").write_bytes(b"no such file")
    return load_program(path)


def _no_weights(path: Path) -> Any:
    path.with_suffix(".safetensors").unlink()
    return load_program(path)


def _given(method: str, *args: Any) -> dict[str, Any]:
    return {name: getattr(tensor, method)(*args) for name, tensor in make()[0].state_dict().items()}


@pytest.mark.parametrize(
    ("load", "error", "words"),
    [
        (lambda path: load_program(path.with_name("other.gw")), InputError, "there is no file"),
        (lambda path: load_program(path.with_suffix(".safetensors")), InputError, "name of a file of weights"),
        (_edit(lambda text: text.replace("return", "retrun")), ParseError, "retrun"),
        (_edit(lambda text: text.replace(": f32[2, 4]", ": f32[2, 5]")), VerificationError, "aten.linear"),
        (_bad_weights, InputError, "no file of weights that can be read"),
        (_no_weights, InputError, r"no file of weights[\s\S]*weights=model.state_dict"),
        (lambda path: load_program(path, {"conv.weight": torch.zeros(1)}), InputError, "was given"),
        (lambda path: load_program(path, cast("Any", {"conv.weight": 3})), InputError, "not as a tensor"),
        (lambda path: load_program(path, {"conv.weigth": torch.zeros(1)}), InputError, "did you mean"),
        (lambda path: load_program(path, _given("to", "meta")), InputError, r"on the meta device[\s\S]*map_location"),
        (lambda path: load_program(path, _given("to_sparse")), InputError, r"no plain tensor[\s\S]*to_dense"),
        (lambda path: load_program(path, cast("Any", [1])), InputError, r"\[1\], which is no path"),
        (lambda path: load_program(cast("Any", None)), InputError, "None, which is no path"),
    ],
)
def test_what_cannot_be_loaded_is_refused(tmp_path: Path, load: Any, error: type[Exception], words: str) -> None:
    _, _, result = make()
    save_program(result.program, tmp_path / "net.gw")
    with pytest.raises(error, match=words):
        load(tmp_path / "net.gw")


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    _, _, result = make()
    parsed = parse_program(str(result.program))
    with pytest.raises(InputError, match=r"no data[\s\S]*weights=False"):
        save_program(parsed, tmp_path / "net.gw")
    assert not list(tmp_path.iterdir())
    save_program(parsed, tmp_path / "net.gw", weights=False)  # as the remedy says
    assert [path.name for path in tmp_path.iterdir()] == ["net.gw"]
    with pytest.raises(InputError, match="there is no folder"):
        save_program(result.program, tmp_path / "none" / "net.gw")


def test_different_tensors_under_the_names_of_a_tied_weight_are_refused(tmp_path: Path) -> None:
    model, x, result = make()
    save_program(result.program, tmp_path / "net.gw")
    checkpoint = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    emitted = emit(load_program(tmp_path / "net.gw", checkpoint)).module  # equal ones are not one object
    assert torch.equal(emitted(x), result.model(x))
    checkpoint["tied.weight"] += 1
    parsed = parse_program(str(result.program))
    for call in (
        lambda: load_program(tmp_path / "net.gw", checkpoint),
        lambda: load_weights(parsed, checkpoint),
        lambda: result.parameter_map.convert(checkpoint),
    ):
        with pytest.raises(
            InputError, match=r"under 'head.weight' and 'tied.weight'[\s\S]*state_dict\['tied.weight'\]"
        ):
            call()
    checkpoint["tied.weight"] = checkpoint["head.weight"]  # as the remedy says
    result.model.load_state_dict(result.parameter_map.convert(checkpoint))
