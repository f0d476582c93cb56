"""Facts of `torch.nn` modules that their operators do not show: momentum of None, what follows the mode."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from compiler.capture.boundary.questions import is_plain
from compiler.lower.functional.functionalizer import Functionalizer
from compiler.lower.functional.storage import Handle
from ir.core import Operation, Value
from ir.locations import Location
from ir.opdef import Trait

_BATCH_NORM_CLASSES = "torch.nn.modules.batchnorm."
_DROPOUT_CLASSES = "torch.nn.modules.dropout."
_INSTANCE_NORM_CLASSES = "torch.nn.modules.instancenorm."
_RECURRENT_CLASSES = "torch.nn.modules.rnn."
_RANDOM_RELU_CLASS = "torch.nn.modules.activation.RReLU"
_ATTENTION = "aten.scaled_dot_product_attention"


def modules_of(root: nn.Module) -> tuple[dict[str, bool], dict[str, str]]:
    """Return first path -> mode of all modules, and alias -> first path of shared ones."""
    first = {module: path for path, module in root.named_modules()}
    aliases: dict[str, str] = {}
    for module, path in first.items():
        for name, child in module._modules.items():
            alias = f"{path}.{name}" if path else name
            if child is not None and first[child] != alias:
                aliases[alias] = first[child]
    return {path: module.training for module, path in first.items()}, aliases


class ModuleFacts:
    """Applies what the original modules know to the operations that came from them.

    Without the original (a bare `ExportedProgram`), only the classes in the locations are known.
    """

    def __init__(self, module: nn.Module | None, irregular: Collection[str] = ()) -> None:
        """Read the original.

        Args:
            module: the original; None for a bare ExportedProgram.
            irregular: paths of modules whose mode code other than the layer's own reads or sets.
        """
        self.modules: dict[str, nn.Module] = (
            {} if module is None else dict(module.named_modules(remove_duplicate=False))
        )
        own = {id(self.modules[path]) for path in irregular if path in self.modules}
        self.irregular = frozenset(
            path for path, each in self.modules.items() if id(each) in own or (path and not is_plain(each))
        )
        """Their behaviour in each mode is found by running both, not from their class."""

    def is_batch_counter(self, target: Any, location: Location) -> bool:
        """Return whether a write to `target` is a BatchNorm that counts its batches."""
        if type(target) is not Handle or target.parent is not None:
            return False
        storage = target.storage
        if storage.kind != "buffer" or not storage.name.endswith("num_batches_tracked"):
            return False
        owner = self.modules.get(location.module_path)
        if owner is not None:
            return isinstance(owner, _BatchNorm)
        return location.module_class.startswith(_BATCH_NORM_CLASSES)

    def adjust(self, op: Operation, functionalizer: Functionalizer) -> Value | None:
        """Set what the schema of an operation does not say; return what replaces its result, if anything."""
        name, module = op.name, self.modules.get(op.location.module_path)
        if op.location.module_path in self.irregular:
            if op.opdef.follows_mode:
                op.attributes["follows_mode"] = False
            if name == "aten.batch_norm":
                op.attributes["counts_batches"] = False
            return None
        if name == "aten.batch_norm":
            self._adjust_batch_norm(op, module)
        elif op.opdef.has(Trait.DROPOUT):
            in_class = op.location.module_class.startswith(_DROPOUT_CLASSES)
            attention = isinstance(module, nn.MultiheadAttention)
            op.attributes["follows_mode"] = in_class or attention or isinstance(module, _DropoutNd)
        elif name == _ATTENTION:
            if isinstance(module, nn.MultiheadAttention):
                op.attributes["train_dropout_p"] = float(module.dropout)
        elif name == "aten.softmax.int":
            if isinstance(module, nn.MultiheadAttention) and module.dropout and not module.training:
                # attention drops weights in training only
                return functionalizer.emit("aten.dropout", op.result, module.dropout, False, follows_mode=True)
        elif op.opdef.follows_mode:
            op.attributes["follows_mode"] = _follows(op, module)
        return None

    def _adjust_batch_norm(self, op: Operation, module: nn.Module | None) -> None:
        has_statistics = op.operand("running_mean") is not None
        if isinstance(module, _BatchNorm):
            op.attributes["momentum"] = None if module.momentum is None else float(module.momentum)
            op.attributes["follows_mode"] = has_statistics
        else:
            in_class = op.location.module_class.startswith(_BATCH_NORM_CLASSES)
            op.attributes["follows_mode"] = in_class and has_statistics
            op.attributes["counts_batches"] = in_class or not has_statistics


def _follows(op: Operation, module: nn.Module | None) -> bool:
    """Return whether the flag of an operator that draws or updates statistics itself is the mode of its layer."""
    home = op.location.module_class
    if op.name == "aten.instance_norm":
        if op.operand("running_mean") is None:
            return False
        if module is None:  # in training, one that is told not to track looks alike
            return home.startswith(_INSTANCE_NORM_CLASSES) and not op.in_training
        return isinstance(module, _InstanceNorm) and module.track_running_stats
    if module is None:
        return home.startswith((_RECURRENT_CLASSES, _RANDOM_RELU_CLASS))
    return isinstance(module, (nn.RNNBase, nn.RReLU))


def mode_locked(dropouts: Sequence[Operation]) -> str:
    """Return why no attribute expresses the other mode, or an empty text.

    Args:
        dropouts: those whose aliasing in eval mode matters to in-place writes.
    """
    reasons = [f"{op.name} at {op.location} shares memory with what is written in place" for op in dropouts]
    return f"what these do depends on train() or eval(): {'; '.join(reasons)}" if reasons else ""
