"""Runs the zoo: a process for each model, bounded in time and memory; what a run has found is not run again.

    python -m tests.zoo.run [--results build/zoo.jsonl] [NAME ...]

Names are globs (`timm/*`, `own/unet`), in the order in which they are to run; without any, all models run. Each adds a
line of JSON to the file of results. A model that the file has is left out, unless `--again` asks for it: then the
last line counts. `python -m tests.zoo.page` makes docs/zoo.md of the file.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import attrs

from tests.zoo.examine import Record
from tests.zoo.models.catalogue import entries
from tests.zoo.models.entry import Entry
from tests.zoo.worker import load, work

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "zoo.jsonl"
_PATIENCE = 10
"""Seconds by the wall clock for each second of CPU time that is allowed: other jobs may run beside this one."""


@attrs.frozen
class Limits:
    """What one model may take."""

    seconds: int = 900
    """CPU time of its process."""
    memory: int = 12 * 1024
    """MiB of resident memory."""


def read(path: Path) -> dict[str, Record]:
    """Return the records in a file, the last of each model; none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {record.name: record for record in map(Record.from_json, lines)}


def select(names: Sequence[str], results: Iterable[str]) -> list[Entry]:
    """Return the entries that match a name, in the order of the names, without those in the results."""
    found: dict[str, Entry] = {}
    for name in names or ("*",):
        family = name.partition("/")[0]
        among = entries() if any(c in family for c in "*?[") else entries((family,))
        found.update((entry.name, entry) for entry in among if fnmatch.fnmatch(entry.name, name))
    done = set(results)
    return [entry for entry in found.values() if entry.name not in done]


def run_one(name: str, limits: Limits, target: Callable[[str, int, Connection], None] = work) -> Record:
    """Examine a model in a process of its own, which calls `target`."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(name, limits.seconds, sender))
    start = time.monotonic()
    process.start()
    sender.close()
    answer = outcome = ""
    while not outcome and not answer:
        if receiver.poll(0.1):
            try:
                answer = receiver.recv()
            except EOFError:
                break  # it died
        elif _resident(process.pid) > limits.memory:
            outcome = "memory"
        elif time.monotonic() - start > _PATIENCE * limits.seconds:
            outcome = "timeout"
    if outcome:
        process.kill()
    process.join()
    if answer:
        return Record.from_json(answer)
    if not outcome and process.exitcode == -signal.SIGXCPU:
        outcome = "timeout"
    bounds = {"timeout": f"more than {limits.seconds} s of CPU time", "memory": f"more than {limits.memory} MiB"}
    error = bounds.get(outcome, f"the process ended with {process.exitcode}")
    return Record(name, outcome or "crash", error, took=round(time.monotonic() - start, 1))


def _resident(process: int) -> int:
    """Return the resident memory of a process in MiB; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize() // 2**20


def run(names: Sequence[str], results: Path, limits: Limits, *, again: bool = False) -> Counter[str]:
    """Run the models that the file of results does not have; return how often each outcome occurred."""
    chosen = select(names, () if again else read(results))
    results.parent.mkdir(parents=True, exist_ok=True)
    load({entry.family for entry in chosen})
    outcomes: Counter[str] = Counter()
    for number, entry in enumerate(chosen, 1):
        record = run_one(entry.name, limits)
        with results.open("a", encoding="utf-8") as file:
            file.write(record.to_json() + "\n")
        outcomes[record.outcome] += 1
        error = f": {record.error[:100]}" if record.error else ""
        sys.stderr.write(f"[{number}/{len(chosen)}] {record.name} {record.outcome} {record.took:.0f} s{error}\n")
    return outcomes


def main() -> None:
    """Parse the command line, and run; the status is 1 if something is unequal, crashed, or hit a limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="globs of the models' names")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of results (default: build/zoo.jsonl)")
    parser.add_argument("--seconds", type=int, default=Limits().seconds, help="CPU time for one model")
    parser.add_argument("--memory", type=int, default=Limits().memory, help="MiB for one model")
    parser.add_argument("--again", action="store_true", help="run models that the file has once more")
    parser.add_argument("--list", action="store_true", help="print the names, and run nothing")
    arguments = parser.parse_args()
    if arguments.list:
        sys.stdout.write("".join(f"{entry.name}\n" for entry in select(arguments.names, ())))
        return
    limits = Limits(arguments.seconds, arguments.memory)
    outcomes = run(arguments.names, arguments.results, limits, again=arguments.again)
    sys.stdout.write(json.dumps(outcomes) + "\n")
    sys.exit(any(outcomes[outcome] for outcome in ("unequal", "crash", "timeout", "memory")))


if __name__ == "__main__":
    main()
