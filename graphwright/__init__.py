"""graphwright: makes PyTorch models ready for deployment, and checks that it did not change them.

Attributes:
    __version__: the version, `major.minor.patch`; `docs/stability.md` says what it promises.
"""

import graphwright._rooms  # noqa: F401 - says clearly when another package stands in the way  # isort: skip

from compiler.bisection import Bisection, bisect
from compiler.codegen import Emitted
from compiler.driver import TransformResult, plan, transform
from compiler.emitted.parameter_map import ParameterMap
from compiler.pipeline import parse_pipeline, pipeline_of
from compiler.planning import Plan, PlannedRewrite
from compiler.programfile import emit, load_program, load_weights, save_program
from compiler.runtime.engines import EngineError
from compiler.steps import Step
from graphwright._version import __version__
from ir.errors import (
    CaptureError,
    CodegenError,
    DidNotConverge,
    EvaluationError,
    GraphwrightError,
    InferenceError,
    InputError,
    MissingPackageError,
    ParseError,
    PassError,
    PatternError,
    ValidationError,
    VerificationError,
)
from passes.manager.manager import Fixpoint, Pass, PassContext, PassManager
from passes.rewrite.bounds.tolerance import Approximation, Tolerance
from passes.rewrite.example import Example
from passes.rewrite.pattern import Match, Pattern, PatternBuilder, scoped
from passes.rewrite.remarks import GraphwrightWarning, MatchRecord, Refusal, Remark
from passes.rewrite.rewriter import Rewriter

__all__ = [
    "Approximation",
    "Bisection",
    "CaptureError",
    "CodegenError",
    "DidNotConverge",
    "Emitted",
    "EngineError",
    "EvaluationError",
    "Example",
    "Fixpoint",
    "GraphwrightError",
    "GraphwrightWarning",
    "InferenceError",
    "InputError",
    "Match",
    "MatchRecord",
    "MissingPackageError",
    "ParameterMap",
    "ParseError",
    "Pass",
    "PassContext",
    "PassError",
    "PassManager",
    "Pattern",
    "PatternBuilder",
    "PatternError",
    "Plan",
    "PlannedRewrite",
    "Refusal",
    "Remark",
    "Rewriter",
    "Step",
    "Tolerance",
    "TransformResult",
    "ValidationError",
    "VerificationError",
    "__version__",
    "bisect",
    "emit",
    "load_program",
    "load_weights",
    "parse_pipeline",
    "pipeline_of",
    "plan",
    "save_program",
    "scoped",
    "transform",
]
