"""What rules report: what they did, what they nearly did, and why not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import attrs

from ir.core import Operation
from ir.locations import Location
from ir.types import Type


class GraphwrightWarning(UserWarning):
    """A rule was skipped because something it needs to know is not known."""


@attrs.frozen
class Refusal:
    """The answer of a `check` that refuses: a reason, and whether the user is warned as well.

    Attributes:
        reason: why the rule does not apply.
    """

    reason: str
    warn: bool = False
    """Whether a Python warning is issued: the rule cannot tell, for want of shapes, whether it applies."""
    near: bool = True
    """Whether this is a near miss, which is reported; False where the structure only looks alike from afar."""


@attrs.frozen
class LeftOut(Refusal):
    """A match that the scope leaves out, or that is switched off.

    Attributes:
        remark: the kind of the remark.
    """

    remark: str = "outside"


@attrs.frozen
class Remark:
    """One statement of a rule about one place.

    Attributes:
        rule: name of the rule, or of the stage that speaks.
        location: the place it is about.
        message: the statement.
    """

    kind: str
    """`applied`, `missed` (a near miss), `outside` (a match that a scope leaves out), `off` (one that a plan leaves
    out), `skipped` (not decidable; a Python warning went out), `failed` (a rule that raised; likewise), `kept`, or
    `approximated` (changed on purpose, with the bound);
    of `validate="each"` also `validated` and `unvalidated`; of the capture and the check `left out`, `unchecked`;
    of quantization `quantized`, `float`, `unified`, `apart`."""
    rule: str
    location: Location
    message: str
    operation: str = ""
    """Name of the operation at the root of the match."""
    reason: str = ""
    """The message without its introduction, where the kind is `kept`."""

    def __str__(self) -> str:
        source = f" ({self.location.source})" if self.location.source else ""
        return f"[{self.kind}] {self.rule}: {self.message}{source}"


@attrs.frozen
class OpSummary:
    """What a report says of one operation."""

    name: str
    location: Location
    types: tuple[Type, ...] = ()
    """The types of the results."""

    def __str__(self) -> str:
        return f"{self.name} at {self.location.where}"


@attrs.frozen
class MatchRecord:
    """One applied rewrite.

    Attributes:
        location: the place of what was replaced.
        replaced: the operations that were removed.
        created: the operations that were inserted.
        is_conversion: whether the rule is a conversion.
        is_fusion: whether the rule is a fusion.
        alternative: the names of the alternatives of the pattern that matched, where they have names.
    """

    pattern: type
    """The pattern's class."""
    location: Location
    replaced: tuple[OpSummary, ...]
    created: tuple[OpSummary, ...]
    is_conversion: bool = False
    is_fusion: bool = False
    alternative: str = ""

    @property
    def kind(self) -> str:
        """`conversion`, `fusion` or `rewrite`."""
        return "conversion" if self.is_conversion else "fusion" if self.is_fusion else "rewrite"

    def __str__(self) -> str:
        before = ", ".join(op.name for op in self.replaced)
        after = ", ".join(op.name for op in self.created) or "nothing"
        return f"{self.pattern.__name__} at {self.location}: {before} -> {after}"


@attrs.define(eq=False)
class RemarkLog:
    """Collects remarks, each once."""

    _remarks: dict[Remark, Operation | None] = attrs.field(factory=dict)
    """Remark -> the operation that it is about, where it is of interest only if that stays in the program."""

    def add(self, remark: Remark, about: Operation | None = None) -> None:
        """Add a remark unless the same was made before; one `about` an operation goes when that goes."""
        if about is None or remark not in self._remarks:
            self._remarks[remark] = about

    def skip(self, remark: Remark) -> None:
        """Add a remark about a rule that could not decide, and warn the user in Python, once each."""
        if remark not in self._remarks:
            self._remarks[remark] = None
            source = f" ({remark.location.source})" if remark.location.source else ""
            warnings.warn(f"{remark.rule} skipped: {remark.message}{source}", GraphwrightWarning, stacklevel=2)

    def __iter__(self) -> Iterator[Remark]:
        return (remark for remark, op in self._remarks.items() if op is None or op.is_attached)

    def __len__(self) -> int:
        return sum(1 for _ in self)
