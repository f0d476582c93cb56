"""Makes docs/zoo.md of the results of a run.

    python -m tests.zoo.page [--results build/zoo.jsonl] > docs/zoo.md

Run it on the machine that ran the zoo, with the same packages: it names them.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.compile_time import REAL_RUNS, cpu
from tests.zoo.examine import EQUAL, Record
from tests.zoo.models.catalogue import FAMILIES, entries
from tests.zoo.run import RESULTS, read

_PACKAGES = ("torch", "torchvision", "timm", "transformers")
_HEADER = """# The zoo

What `transform(model, inputs)` with the default target does on many models, with random weights. Made by `make zoo` and
`python -m tests.zoo.page`; do not edit.

Of each model is held: that the result is equal in eval mode and after `train()`: outputs in float32 (at most twice the
original's own error) and in float64 (1e-9), gradients and a call after a step of descent in float64 with a bound of
measured rounding; and that compiling the result again changes nothing. Every value that initialization leaves constant
is randomised. Images are as small as the model takes them.
"""
_OUTCOMES = ("equal", "unequal", "crash", "refused", "not exported", "does not run", "timeout", "memory")
_MEANING = {
    "equal": "in all that is held",
    "unequal": "in something that is held",
    "crash": "an error that is not ours",
    "refused": "by us, and `torch.export` takes it",
    "not exported": "`torch.export` does not take it either",
    "does not run": "the model itself, with the packages here",
    "timeout": "more CPU time than the run allows",
    "memory": "more memory than the run allows",
}
_ROWS = 60


def page(records: Collection[Record], host: str, *, missing: Sequence[str] = ()) -> str:
    """Return the page.

    Args:
        records: of the models.
        host: the machine and the versions.
        missing: names of models that were not run.
    """
    parts = (
        [_HEADER, f"Run on {host}.\n"],
        _summary(records, missing),
        _exceptions(records),
        *(_family(family, [r for r in records if r.family == family]) for family in FAMILIES),
        _rules(records),
        _unfused(records),
    )
    return "\n".join(line for part in parts for line in part)


def _summary(records: Collection[Record], missing: Sequence[str]) -> Iterator[str]:
    counts = Counter((record.family, record.outcome) for record in records)
    outcomes = [outcome for outcome in _OUTCOMES if any(counts[family, outcome] for family in FAMILIES)]
    yield from _table(
        ("outcome", *FAMILIES, "what it means"),
        (
            (outcome, *(str(counts[family, outcome] or "") for family in FAMILIES), _MEANING[outcome])
            for outcome in outcomes
        ),
    )
    if missing:
        left = {family: [name for name in missing if name.partition("/")[0] == family] for family in FAMILIES}
        numbers = ", ".join(f"{len(names)} of {family}" for family, names in left.items() if names)
        yield f"<details><summary>Not run: {numbers}.</summary>\n"
        for family, names in left.items():
            if names:
                yield f"- {family}:"
                yield from textwrap.wrap(
                    ", ".join(name.partition("/")[2] for name in names),
                    118,
                    initial_indent="  ",
                    subsequent_indent="  ",
                    break_on_hyphens=False,
                )
        yield "\n</details>\n"


def _exceptions(records: Iterable[Record]) -> Iterator[str]:
    rows = []
    for record in records:
        if record.outcome != EQUAL:
            differences = [text for text in (record.in_eval, record.in_train, record.again) if text[:7] == "differs"]
            rows.append((f"`{record.name}`", record.outcome, _cell(record.error or "; ".join(differences))))
    yield "## What is not equal\n"
    if not rows:
        yield "Nothing.\n"
        return
    yield from _table(("model", "outcome", "what was said"), rows)


def _family(family: str, records: Sequence[Record]) -> Iterator[str]:
    done = [record for record in records if record.outcome in (EQUAL, "unequal") and record.before]
    if not done:
        return
    yield f"## {family}\n"
    yield "Operations are counted before and after; a region counts as one. Seconds are CPU time of `transform`"
    yield "without the runs of the model itself; MiB are what it takes above the model at most.\n"
    yield from _table(
        ("model", "inputs", "parameters", "operations", "rewrites", "stays", "train mode", "s", "MiB"),
        ([*map(_cell, _row(record))] for record in done),
    )
    notes = Counter(r.in_train for r in done if r.in_train.startswith(("refused", "the model")))
    yield from (f"- {count} in train mode: {_cell(note)}" for note, count in notes.most_common())
    if notes:
        yield ""


def _row(record: Record) -> Iterator[str]:
    yield f"`{record.name.partition('/')[2]}`"
    yield record.shapes
    yield f"{record.parameters / 1e6:.1f} M" if record.parameters >= 1e5 else f"{record.parameters / 1e3:.0f} k"
    yield f"{record.before} → {record.after}"
    yield ", ".join(f"{_rule(rule)} {count}" for rule, count in record.rewrites.items())
    stays: Counter[str] = Counter()
    for kept in record.kept:
        stays[_operator(kept.operation)] += kept.times
    yield ", ".join(f"{operator} {count}" for operator, count in stays.most_common(6)) + (", …" * (len(stays) > 6))
    yield {"": "", EQUAL: EQUAL}.get(record.in_train, record.in_train.partition(":")[0])
    yield f"{sum(seconds for stage, seconds in record.seconds.items() if stage not in REAL_RUNS):.1f}"
    yield str(record.peak)


def _rules(records: Iterable[Record]) -> Iterator[str]:
    models, times = Counter[str](), Counter[str]()
    for record in records:
        models.update(record.rewrites.keys())
        times.update(record.rewrites)
    yield "## Rewrites by rule\n"
    yield from _table(
        ("rule", "models", "times"), ((f"`{rule}`", str(models[rule]), str(n)) for rule, n in times.most_common())
    )


def _unfused(records: Iterable[Record]) -> Iterator[str]:
    times = Counter[tuple[str, str]]()
    models: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        for kept in record.kept:
            key = _operator(kept.operation), _general(kept.reason)
            times[key] += kept.times
            models[key].add(record.name)
    rows = sorted(times, key=lambda key: (-len(models[key]), -times[key], key))
    yield "## What stays unfused, and why\n"
    yield "Reasons that differ in places, types or numbers only are one; `…` stands for these.\n"
    yield from _table(
        ("operator", "models", "times", "because"),
        ((f"`{key[0]}`", str(len(models[key])), str(times[key]), _cell(key[1])) for key in rows[:_ROWS]),
    )
    rest = rows[_ROWS:]
    if rest:
        yield f"Less frequent are {len(rest)} other reasons, for {sum(times[key] for key in rest)} operations.\n"


def _general(reason: str) -> str:
    """Return a reason without what tells one place from another."""
    first, *rest = reason.split("; ")
    text = re.sub(r"\b\d[\d, x]*\b", "…", re.sub(r"`[^`]*`", "`…`", first))
    return f"{text}; …" if rest else text


def _rule(name: str) -> str:
    return name.removesuffix("Pattern")


def _operator(name: str) -> str:
    return name.removeprefix("aten.").partition(".")[0].strip("_")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def _cell(text: str) -> str:
    """Return a text for a cell of a Markdown table, shortened, without paths of this machine."""
    text = re.sub(r"(/[\w.+-]+)+/(site-packages|tests)/", r"\2/", text.replace("|", "\\|").replace("\n", " "))
    return text if len(text) <= 400 else f"{text[:400]}…"


def host() -> str:
    """Name the processor and the versions of the packages."""
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"{cpu()}, one thread, Python {sys.version.split()[0]}, {', '.join(found)}"


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of results (default: build/zoo.jsonl)")
    found = read(parser.parse_args().results)
    order = [entry.name for entry in entries()]
    records = [found[name] for name in order if name in found]
    sys.stdout.write(page(records, host(), missing=[name for name in order if name not in found]))


if __name__ == "__main__":
    main()
