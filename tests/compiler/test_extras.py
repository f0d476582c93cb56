"""Optional packages: what is said where one is missing."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from compiler.extras import EXTRAS, import_extra
from ir.errors import MissingPackageError

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


@pytest.mark.parametrize("package", EXTRAS)
def test_a_missing_package_is_named_with_its_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError) as caught:
        import_extra(package)
    assert package in caught.value.message
    assert caught.value.remedy == f"pip install 'graphwright[{EXTRAS[package]}]'"


def test_each_extra_exists_and_installs_its_packages():
    extras = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(line.startswith(package.replace("_", "-")) for line in extras[extra]), package
