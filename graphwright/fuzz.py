"""Looking for wrong rewrites: for people who write patterns and passes of their own."""

from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.case import Case
from fuzz.programs.properties import Finding, Properties
from fuzz.rules.reverse import inflated
from fuzz.search.counterexample import Counterexample, UnsoundError
from fuzz.search.sound import assert_sound, check, find_counterexample
from fuzz.search.soundness import Soundness
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
