"""Looking for wrong rewrites: for people who write patterns and passes of their own."""

from fuzz.case import Case
from fuzz.check import Finding, Properties
from fuzz.counterexample import Counterexample, UnsoundError
from fuzz.module_case import InputSpec, ModuleCase
from fuzz.reverse import inflated
from fuzz.sound import assert_sound, check, find_counterexample
from fuzz.soundness import Soundness
from fuzz.strategies import inputs, instances, modules, programs
from passes.fuse.kinds import Region, register_kind

__all__ = [
    "Case",
    "Counterexample",
    "Finding",
    "InputSpec",
    "ModuleCase",
    "Properties",
    "Region",
    "Soundness",
    "UnsoundError",
    "assert_sound",
    "check",
    "find_counterexample",
    "inflated",
    "inputs",
    "instances",
    "modules",
    "programs",
    "register_kind",
]
