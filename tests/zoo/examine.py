"""One model of the zoo: compiled, compared in both modes, compiled once more, measured."""

from __future__ import annotations

import copy
import json
import resource
import time
from collections import Counter
from typing import Any

import attrs
import torch
from torch import nn

from benchmarks.compile_time import MIB, Meter
from benchmarks.models import randomize_batch_norm
from compiler.capture.errors import partial_graphs_unprinted
from compiler.equality.accuracy import MeasurementError, measure_accuracy
from compiler.equality.observation import seeded
from compiler.equality.widened import Widened, precision_of
from compiler.report import group_kept
from fuzz.modules.hold import Arguments, Comparison, Runs
from fuzz.modules.observation import cast_tree
from fuzz.programs.observation import quiet
from fuzz.programs.properties import Finding, Properties, Unusable
from graphwright import GraphwrightError, InputError, TransformResult, ValidationError, transform
from tests.zoo.models.entry import Entry, Made

EQUAL = "equal"
SAME = "same"


@attrs.frozen
class Kept:
    """Operations of one operator that stay unfused for one reason."""

    operation: str
    times: int
    place: str
    """The first of them."""
    reason: str


@attrs.frozen
class Record:
    """What came of one model. Compares by value; a line of JSON in the file of a run."""

    name: str
    outcome: str
    """`equal`; `unequal`; `refused`: by us, though `torch.export` takes it; `not exported`: by both; `does not run`:
    the model itself, here; `crash`: an error that is not ours; `timeout` and `memory`: the limits of the run."""
    error: str = ""
    """What was raised."""
    parameters: int = 0
    shapes: str = ""
    """Shapes of the inputs."""
    before: int = 0
    """Operations that were captured."""
    after: int = 0
    """Operations of the result; a region counts as one."""
    rewrites: dict[str, int] = attrs.field(factory=dict)
    """Rule -> how often it was applied."""
    kept: tuple[Kept, ...] = ()
    missed: int = 0
    """Remarks on near misses."""
    in_eval: str = ""
    """`equal`, or the difference: outputs in float32 and float64, gradients and a step of descent in float64."""
    in_train: str = ""
    """The same after `train()`; or why there is nothing to compare."""
    again: str = ""
    """`same` if compiling the result changes nothing, or the change."""
    seconds: dict[str, float] = attrs.field(factory=dict)
    """Stage of `transform` -> CPU seconds."""
    peak: int = 0
    """MiB that `transform` takes above the model that it is given, at most."""
    resident: int = 0
    """MiB of the whole process, at most."""
    took: float = 0.0
    """CPU seconds of the whole process."""

    @property
    def family(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]

    def to_json(self) -> str:
        """Return the record as a line of JSON; `Record.from_json` reads it back."""
        return json.dumps(attrs.asdict(self), ensure_ascii=False)

    @staticmethod
    def from_json(line: str) -> Record:
        """Return the record of a line."""
        fields = json.loads(line)
        return Record(**{**fields, "kept": tuple(Kept(**kept) for kept in fields["kept"])})


def examine(entry: Entry) -> Record:
    """Make a model, compile it, and return what came of it."""
    record = _examined(entry)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return attrs.evolve(record, resident=resident, took=round(time.process_time(), 1))


def _examined(entry: Entry) -> Record:
    try:
        with seeded(0), quiet():
            model, args, kwargs = made = _randomized(entry.make())
            copy.deepcopy(model)(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    except Exception as error:  # noqa: BLE001 - a package may lack anything
        return Record(entry.name, "does not run", _text(error))
    record = Record(
        entry.name,
        EQUAL,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        shapes=_shapes(made),
    )
    meter = Meter(memory=True)
    try:
        with seeded(0), quiet():
            result = transform(model, args, kwargs, progress=meter.begin)
        meter.begin("")
    except ValidationError as error:
        return attrs.evolve(record, outcome="unequal", error=_text(error), in_eval="differs")
    except GraphwrightError as error:
        return attrs.evolve(record, outcome="refused" if _is_exported(made) else "not exported", error=_text(error))
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return attrs.evolve(record, outcome="crash", error=_text(error))
    seconds = {stage: round(time, 3) for stage, time in meter.times.items()}
    record = attrs.evolve(record, peak=meter.peak // MIB, seconds=seconds, **_facts(result))
    with quiet():
        in_eval, in_train, again = _in_eval(made, result), _in_train(made, result), _again(made, result)
    wrong = [text for text in (in_eval, in_train, again) if text not in (EQUAL, SAME) and text.startswith("differs")]
    return attrs.evolve(record, outcome="unequal" if wrong else EQUAL, in_eval=in_eval, in_train=in_train, again=again)


def _randomized(made: Made) -> Made:
    """Randomise what initialization leaves constant, around statistics of a run where there are such."""
    model, args, kwargs = made
    randomize_batch_norm(model, torch.Generator().manual_seed(0), *args, **kwargs)
    return made


def _text(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {' '.join(line.strip() for line in lines[:12])}"[:1000]


def _shapes(made: Made) -> str:
    leaves = torch.utils._pytree.tree_leaves(made[1:])
    return ", ".join("x".join(map(str, x.shape)) for x in leaves if isinstance(x, torch.Tensor))


def _is_exported(made: Made) -> bool:
    model, args, kwargs = made
    try:
        with seeded(0), quiet(), partial_graphs_unprinted():
            torch.export.export(copy.deepcopy(model), copy.deepcopy(args), copy.deepcopy(kwargs))
    except Exception:  # noqa: BLE001 - whatever it raises
        return False
    return True


def _facts(result: TransformResult) -> dict[str, Any]:
    return {
        "before": sum(result.operations_before.values()),
        "after": sum(result.operations_after.values()),
        "rewrites": result.counts(),
        "kept": tuple(
            Kept(group.operation, len(group.places), group.places[0], group.reason)
            for group in group_kept(result.remarks)
        ),
        "missed": sum(remark.kind == "missed" for remark in result.remarks),
    }


def _in_eval(made: Made, result: TransformResult) -> str:
    model, args, kwargs = made
    if not _runs(_double(made)):  # some kernels are not for float64
        return _held(made, result, training=False)
    try:
        accuracy = measure_accuracy(model, result.model, args, kwargs)
    except MeasurementError as error:
        return f"differs: {_text(error)}"
    if not accuracy.others_equal:
        return "differs: in integers"
    for output in accuracy.outputs:
        if not output.is_within_bound or output.difference > output.difference_allowed:
            return f"differs: {output}"
    return _held(made, result, training=False)


def _double(made: Made) -> Made:
    args, kwargs = cast_tree(made[1:], torch.float64)
    return copy.deepcopy(made[0]).double(), args, kwargs


def _runs(made: Made) -> bool:
    model, args, kwargs = copy.deepcopy(made)
    try:
        with torch.no_grad(), Widened(frozenset({torch.float32})):
            model(*args, **kwargs)
    except Exception:  # noqa: BLE001 - kernels refuse by several errors
        return False
    return True


def _in_train(made: Made, result: TransformResult) -> str:
    model, args, kwargs = made
    twin = copy.deepcopy(model)
    try:
        with seeded(0):
            twin.train()(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    except Exception as error:  # noqa: BLE001 - models refuse it in many ways
        return f"the model does not run: {_text(error)}"
    try:
        copy.deepcopy(result.model).train()
    except InputError as error:
        return f"refused: {_text(error)}"
    return _held(made, result, training=True)


def _held(made: Made, result: TransformResult, *, training: bool) -> str:
    """Compare calls, gradients, and a call after a step of descent; in float64, where the model runs so."""
    model, args, kwargs = made
    model, emitted = copy.deepcopy(model).train(training), copy.deepcopy(result.model).train(training)
    wide = _double((model, args, kwargs))
    is_double = _runs(wide)
    if is_double:
        model, args, kwargs = wide
        emitted = emitted.double()
    changed = attrs.evolve(result, model=emitted)
    comparison = Comparison(model, changed, (args, kwargs), Properties(), double=is_double)
    precision = precision_of(made[1:], made[0])

    def run(module: nn.Module, arguments: Arguments) -> Runs:
        if not is_double:
            return comparison.run(module, arguments)
        with precision.mode():  # the code of a module that casts to float32 (`x.float()`) rounds in one of the two only
            return comparison.run(module, arguments)

    try:
        comparison.hold("", run)
    except Finding as finding:
        return f"differs: {_text(finding)}"
    except Unusable as error:
        return f"the model does not run with gradients: {_text(error.__cause__ or error)}"
    return EQUAL


def _again(made: Made, result: TransformResult) -> str:
    """Compile the result, which must be left as it is."""
    _, args, kwargs = made
    try:
        with seeded(0):
            again = transform(copy.deepcopy(result.model), args, kwargs, check=False)
    except Exception as error:  # noqa: BLE001 - any is a fault
        return f"differs: {_text(error)}"
    if again.operations_after != result.operations_after:
        before, after = (Counter(dict(each.operations_after)) for each in (result, again))
        return f"differs: {dict(before - after)} became {dict(after - before)}"
    return SAME
