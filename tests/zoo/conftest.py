"""Tests of one model go to one worker, so that it is compiled once."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        callspec = getattr(item, "callspec", None)
        name = None if callspec is None else callspec.params.get("name")
        if name is not None:
            item.add_marker(pytest.mark.xdist_group(name))
