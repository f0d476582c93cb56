"""Settings that hold for every test."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from fuzz.campaign.campaign import freeze_imports

# The suite runs the same examples each time, so a commit that passed passes again; looking for new ones is
# what HYPOTHESIS_PROFILE=thorough and the campaigns of fuzz/ are for. Times on a shared machine say nothing:
# no deadline.
settings.register_profile(
    "default", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("thorough", settings.get_profile("default"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of a module that share what a fixture makes on one worker, where it is made once."""
    for item in items:
        found = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
        is_shared = any(each.scope == "module" for defined in found.values() for each in defined)
        if is_shared and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_collection_finish() -> None:
    """Spare the collector what stays until the end: a tenth of the time of all tests."""
    freeze_imports()


@pytest.fixture(autouse=True)
def _fixed_random_state() -> None:
    """Starts each test from the same random state, whichever tests ran before it."""
    torch.manual_seed(0)
