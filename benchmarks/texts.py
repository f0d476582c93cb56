"""Texts of the ten real models: programs (lowered and rewritten), reports, emitted code.

    python -m benchmarks.texts before; (change something); python -m benchmarks.texts after; diff -r before after

A refactoring must leave all texts byte for byte. It runs in older trees too, if the names imported below are there:
`PYTHONPATH=OLD_TREE python benchmarks/texts.py FOLDER`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import attrs
from rich.console import Console

from benchmarks.models import REAL_MODELS, example_input, real_model
from compiler.driver import transform
from compiler.pipeline import pipeline_of
from compiler.report import make_report, print_report
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from ir.text.printer import print_program


def write_texts(name: str, folder: Path) -> None:
    """Write the texts of one of `REAL_MODELS`: the lowered program, the rewritten one, the report, the emitted code."""
    model, images = real_model(name), example_input(batch=1)
    lowered = transform(model, (images,), pipeline=pipeline_of(()), check=False)
    result = transform(model, (images,), pipeline=pipeline_of(TENSORRT_PATTERNS), check=False)
    (folder / f"{name}.lowered.gw").write_text(print_program(lowered.program) + "\n", encoding="utf-8")
    (folder / f"{name}.gw").write_text(print_program(result.program) + "\n", encoding="utf-8")
    (folder / f"{name}.py").write_text(result.model.code, encoding="utf-8")
    with (folder / f"{name}.report.txt").open("w", encoding="utf-8") as file:
        report = attrs.evolve(make_report(result, model=name), stages=())  # times always differ
        print_report(report, Console(file=file, width=160))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the texts of all models, or of those that are named."""
    parser = argparse.ArgumentParser(description="Write programs, reports and emitted code of the real models.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", default=REAL_MODELS, metavar="MODEL")
    chosen = parser.parse_args(arguments)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    for name in chosen.models:
        write_texts(name, chosen.folder)


if __name__ == "__main__":
    main()
