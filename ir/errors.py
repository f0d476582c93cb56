"""The errors graphwright raises; every one derives from `GraphwrightError`."""

from __future__ import annotations

from ir.locations import Location


class GraphwrightError(Exception):
    """Base class of all errors that graphwright raises on purpose.

    Attributes:
        message: what is wrong, without place and remedy.
        location: where in the user's model the error arose, when known.
        remedy: what the user can do about it, when known.
    """

    def __init__(self, message: str, *, location: Location | None = None, remedy: str | None = None) -> None:
        self.message = message
        self.location = location
        self.remedy = remedy
        text = message
        if location is not None and not location.is_unknown:
            text += f"\n  at {location}"
        if remedy:
            text += f"\n  remedy: {remedy}"
        super().__init__(text)


class InputError(GraphwrightError):
    """An argument of a public function has the wrong type or value."""


class CaptureError(GraphwrightError):
    """The model could not be captured as a graph, or capturing it would change its meaning."""


class InferenceError(GraphwrightError):
    """The types of an operation's operands and attributes do not fit it."""


class VerificationError(GraphwrightError):
    """A program breaks an invariant of the IR."""


class ParseError(GraphwrightError):
    """Text is not a well-formed program, pipeline or type.

    Attributes:
        line: number of the line, from 1; 0 where it is not known.
        column: number of the column, from 1.
    """

    def __init__(
        self,
        message: str,
        *,
        line: int = 0,
        column: int = 0,
        location: Location | None = None,
        remedy: str | None = None,
    ) -> None:
        self.line = line
        self.column = column
        super().__init__(message, location=location, remedy=remedy)


class EvaluationError(GraphwrightError):
    """An operation could not be run on the given tensors."""


class PatternError(GraphwrightError):
    """A pattern is ill-formed, or its check or rewrite raised."""


class PassError(GraphwrightError):
    """A pass failed, or broke its contract."""


class DidNotConverge(PassError):  # noqa: N818 - a public name
    """A fixpoint reached its bound: rules take turns undoing each other."""


class ValidationError(GraphwrightError):
    """A rewrite, or the whole result, computes something else than the original."""


class CodegenError(GraphwrightError):
    """A program cannot be emitted as a module."""


class MissingPackageError(GraphwrightError):
    """An optional package is needed and cannot be imported."""
