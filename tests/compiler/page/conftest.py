from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.page.history import History, history_of
from graphwright import TransformResult, transform
from tests.compiler.page.models import Net, inputs


@pytest.fixture(scope="session")
def result() -> TransformResult:
    torch.manual_seed(0)
    return transform(Net().eval(), inputs(), check=False)


@pytest.fixture(scope="session")
def history(result) -> History:
    return history_of(result._replay, result.counts())


@pytest.fixture(scope="session")
def page_file(result, tmp_path_factory) -> Path:
    pytest.importorskip("netron")
    path = tmp_path_factory.mktemp("page") / "net.html"
    result.save_html(path, title="Net </script><script>window.stolen = 1</script> & \ud800 “große”")
    return path


def data_of(path: Path) -> dict[str, Any]:
    """The data in a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])
