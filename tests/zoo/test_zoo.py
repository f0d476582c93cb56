"""A fixed sample of the zoo, by the command that runs all of it (`python -m tests.zoo.run`)."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.zoo import page
from tests.zoo.examine import EQUAL, SAME, Kept, Record
from tests.zoo.models.catalogue import entries
from tests.zoo.run import ROOT, Limits, read, run_one, select

pytestmark = pytest.mark.xdist_group("zoo sample")  # its models run once

SAMPLE = ("own/lstm", "own/experts_routed", "own/two_heads")


def run(results: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.zoo.run", "--results", str(results), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zoo") / "zoo.jsonl"
    done = run(path, *SAMPLE)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize("name", SAMPLE)
def test_equal_in_both_modes_and_left_alone_the_second_time(results, name):
    record = read(results)[name]
    assert (record.outcome, record.in_eval, record.again) == (EQUAL, EQUAL, SAME), record
    assert record.in_train == EQUAL
    assert record.seconds["capture"] > 0 and record.resident > 100 and record.parameters > 0


def test_what_is_done_and_what_stays_is_counted(results):
    record = read(results)["own/two_heads"]
    assert record.rewrites["ConvBNActPattern"] == 1
    assert record.after < record.before
    assert {kept.operation: kept.times for kept in record.kept}["aten.cat"] == 1


def test_a_model_that_the_file_has_is_not_run_again(results):
    assert select(SAMPLE, read(results)) == []
    assert [entry.name for entry in select(("own/lstm", "own/g*"), read(results))] == ["own/gru", "own/graph"]


def spin(name: str, seconds: int, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    while True:
        pass


def sleep(name: str, seconds: int, pipe: Connection) -> None:
    time.sleep(100)


def die(name: str, seconds: int, pipe: Connection) -> None:
    os._exit(3)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # those of pytest-xdist
@pytest.mark.parametrize(
    ("target", "outcome", "said"),
    [(spin, "timeout", "1 s of CPU time"), (sleep, "memory", "10 MiB"), (die, "crash", "ended with 3")],
)
def test_a_model_that_takes_too_much_is_stopped(target, outcome, said):
    record = run_one("own/x", Limits(seconds=1, memory=10 if target is sleep else 100_000), target)
    assert record.outcome == outcome and said in record.error


def test_names_are_unique():
    names = [entry.name for entry in entries(("own", "transformers", "timm"))]
    assert len(names) == len(set(names)) > 140


def test_a_record_comes_back_from_its_line():
    record = Record("own/x", EQUAL, rewrites={"A": 1}, kept=(Kept("aten.cat", 1, "a", "b"),), seconds={"emit": 0.5})
    assert Record.from_json(record.to_json()) == record


def test_the_page_says_what_came_of_each_model(results):
    text = page.page(read(results).values(), "a host")
    assert "a host" in text
    for name in SAMPLE:
        assert f"`{name.partition('/')[2]}`" in text


def test_the_page_counts_what_was_not_run_and_folds_the_names():
    missing = ["own/a", *(f"timm/{'x' * 20}_{i}" for i in range(20))]
    text = page.page([Record("own/x", EQUAL)], "a host", missing=missing)
    assert "<summary>Not run: 1 of own, 20 of timm.</summary>" in text
    folded = text.partition("<details>")[2].partition("</details>")[0]
    assert all(name.partition("/")[2] in folded for name in missing)
    assert max(map(len, folded.splitlines())) <= 120
