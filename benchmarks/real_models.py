"""What the default patterns do on the real models, as the Markdown of docs/reports/real-models.md.

python -m benchmarks.real_models > docs/reports/real-models.md
"""

from __future__ import annotations

import warnings

from benchmarks.models import REAL_MODELS, example_input, real_model
from compiler.driver import TransformResult, transform
from compiler.report import group_kept

HEADER = """# Real models

What `transform(model, (x,))` with `TENSORRT_PATTERNS` does on ten models of torchvision, and which operations stay
unfused, with the reason that `result.remarks` gives. Made by `python -m benchmarks.real_models`; do not edit.

Operations are counted without reshapes and permutes; a fused region counts as one. Operations that stay for one reason
share a row: where the reasons name different places or types, the row shows `…`.
"""


def compile_model(name: str) -> TransformResult:
    """Compile one model on 64x64 images (the counts do not depend on the size)."""
    options = {"image_size": 64} if name == "vit_b_16" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transform(real_model(name, **options), (example_input(batch=2, size=64),))


def moves_only(name: str) -> bool:
    """Whether an operator moves elements only."""
    return name in {"aten.reshape", "aten.permute", "aten.flatten.using_ints", "aten.transpose.int", "aten.contiguous"}


def describe(name: str, result: TransformResult) -> str:
    """Return the section of one model."""
    before = sum(n for op, n in result.operations_before.items() if not moves_only(op))
    after = sum(n for op, n in result.operations_after.items() if not moves_only(op))
    lines = [f"## {name}", "", f"{before} operations became {after}.", "", "| rewrite | times |", "|---|---|"]
    lines += [f"| `{pattern}` | {count} |" for pattern, count in result.counts().items()]
    kept = group_kept(result.remarks)
    lines.append("")
    if not kept:
        lines.append("Nothing stays unfused.")
    else:
        lines += ["| stays | times | for example at | because |", "|---|---|---|---|"]
        lines += [f"| `{k.operation}` | {len(k.places)} | `{k.places[0]}` | {_cell(k.reason)} |" for k in kept]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Return a text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Print the page."""
    print(HEADER)
    for name in REAL_MODELS:
        print(describe(name, compile_model(name)))


if __name__ == "__main__":
    main()
