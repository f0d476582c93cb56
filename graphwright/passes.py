"""The passes and instruments that pipelines are made of, and rules that are in no list of a target."""

from passes.apply import Convert, Fuse
from passes.canonicalize import Canonicalize
from passes.convert.linears import MergeLinearsPattern
from passes.fold.batch_norm import FoldBatchNorm
from passes.fold.freeze import FreezeWeights
from passes.manager.analysis import Analysis
from passes.manager.instruments import DiffIR, DumpIR, Statistics, VerifyEach
from passes.manager.manager import Fixpoint, Instrument, Pass, PassContext, PassManager, PassResult, Verify
from passes.manager.timing import PassTime, RuleTime, Timing
from passes.quant.place import PlaceQuantizers
from passes.quant.remove import RemoveQuantizers
from passes.quant.unify import UnifyQuantizers
from passes.rewrite.rewriter import Rewriter

__all__ = [
    "Analysis",
    "Canonicalize",
    "Convert",
    "DiffIR",
    "DumpIR",
    "Fixpoint",
    "FoldBatchNorm",
    "FreezeWeights",
    "Fuse",
    "Instrument",
    "MergeLinearsPattern",
    "Pass",
    "PassContext",
    "PassManager",
    "PassResult",
    "PassTime",
    "PlaceQuantizers",
    "RemoveQuantizers",
    "Rewriter",
    "RuleTime",
    "Statistics",
    "Timing",
    "UnifyQuantizers",
    "Verify",
    "VerifyEach",
]
