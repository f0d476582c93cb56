"""Tests of one model run together and on one worker, so that it is compiled once and held no longer than needed."""

from __future__ import annotations

from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def _model(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    return "" if callspec is None else str(callspec.params.get("name", ""))


def _group(item: pytest.Item) -> str:
    marker = item.get_closest_marker("xdist_group")
    return "" if marker is None else str(marker.args[0])


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if _HERE in item.path.parents]
    for item in mine:
        if _model(item) and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(_model(item)))
    others = [item for item in items if _HERE not in item.path.parents]
    # by group, else what the fixture of a module makes would be made several times; and first, since they take longest:
    # a worker that begins one at the end would keep the other waiting
    items[:] = [*sorted(mine, key=_group), *others]
