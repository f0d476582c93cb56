"""The rooms have common names: importing graphwright makes sure that they are its own, and loads them."""

from __future__ import annotations

import gc
import importlib
import importlib.util
from pathlib import Path

ROOMS = ("ir", "passes", "compiler", "fuzz")


def check_rooms() -> None:
    """Compare where Python finds the packages of graphwright with where graphwright itself lies.

    Raises:
        ImportError: another package or module of the same name comes first on `sys.path`.
    """
    home = Path(__file__).resolve().parent.parent
    for room in ROOMS:
        spec = importlib.util.find_spec(room)
        expected = home / room
        places = (
            [] if spec is None else [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else [])]
        )
        if not any(Path(place).resolve() in (expected, expected / "__init__.py") for place in places):
            found = places[0] if places else "nowhere"
            raise ImportError(
                f"graphwright needs its own package `{room}` at {expected}, but Python finds {found}: "
                "rename that module, or put graphwright's folder before it on sys.path"
            )


def load_rooms() -> None:
    """Import the compiler, and with it every other room, while the cyclic garbage collector is paused.

    Modules live on, so a full collection while they load frees nothing; walking all objects of torch for it would take
    a fifth of the import.
    """
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module("compiler.driver")
    finally:
        if is_collecting:
            gc.enable()


check_rooms()
load_rooms()
