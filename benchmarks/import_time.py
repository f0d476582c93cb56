"""What `import graphwright` adds to `import torch`: processes of both kinds in turn, on one machine.

python -m benchmarks.import_time [--rounds N]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time

STATEMENTS = ("import torch", "import torch, graphwright")


def seconds(statement: str) -> float:
    """Return how long a new interpreter takes to start and run a statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Print the medians, and what is added as a share of `import torch`."""
    parser = argparse.ArgumentParser(description="Measure the cost of `import graphwright` beside `import torch`.")
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    for statement in STATEMENTS:
        seconds(statement)  # files are in memory, bytecode is written
    pairs = [tuple(map(seconds, STATEMENTS)) for _ in range(rounds)]
    shares = [both / alone - 1 for alone, both in pairs]
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {rounds} rounds in turn")
    for statement, times in zip(STATEMENTS, zip(*pairs, strict=True), strict=True):
        print(f"{statement:<28} {statistics.median(times):6.2f} s")
    print(f"graphwright adds             {statistics.median(shares):6.2f} of it (least {min(shares):.2f})")


if __name__ == "__main__":
    main()
