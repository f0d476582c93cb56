"""The public window: what it exports, and what it says when other packages stand in its way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import graphwright

ROOT = Path(graphwright.__file__).parent.parent


def test_every_public_name_exists():
    assert sorted(graphwright.__all__) == graphwright.__all__
    for name in graphwright.__all__:
        assert getattr(graphwright, name).__doc__


@pytest.mark.parametrize("shadow", ["ir.py", "passes/__init__.py"])
def test_a_shadowing_package_is_named_with_both_paths(shadow, tmp_path):
    path = tmp_path / shadow
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import graphwright"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError") and str(tmp_path) in last and str(ROOT) in last
    assert "rename" in last


def test_the_import_loads_no_compiler_of_torch_and_no_extra() -> None:
    """What these take is most of what `import graphwright` could cost; they are loaded when they are needed."""
    unwanted = (
        "torch._dynamo",
        "torch._inductor",
        "rich",
        "hypothesis",
        "fuzz",
        "torchvision",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "openvino",
    )
    code = f"import sys, graphwright; print(*(name for name in {unwanted!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_the_import_leaves_the_garbage_collector_as_it_was() -> None:
    for setting, expected in (("enable", "True"), ("disable", "False")):
        code = f"import gc; gc.{setting}(); import graphwright; print(gc.isenabled())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.split() == [expected]
