"""Measures what `import prw` takes beside `import peft`: `python scripts/import_time.py [rounds]`.

Each import has a process of its own; the two are measured in turn, since a machine's speed drifts. It ends
with 1 if prw takes more than a tenth more than peft, by the medians.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

LIMIT = 1.10
TIMED = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"


def seconds(package: str) -> float:
    """Count the CPU seconds of one import in a fresh process: a busy machine makes them no more."""
    ran = subprocess.run(
        [sys.executable, "-c", TIMED.format(package)], capture_output=True, text=True, check=True
    )
    return float(ran.stdout.split()[-1])


def main(rounds: int) -> int:
    """Print both medians and their ratio; give the exit status."""
    found: dict[str, list[float]] = {"peft": [], "prw": []}
    for package in found:
        seconds(package)  # warm-up: files come off the disk
    for _ in range(rounds):
        for package, times in found.items():
            times.append(seconds(package))
    peft, prw = (statistics.median(times) for times in found.values())
    sys.stdout.write(
        f"import peft {peft:.3f} s of CPU, import prw {prw:.3f} s, ratio {prw / peft:.3f} (limit {LIMIT}), "
        f"{rounds} rounds\n"
    )
    return int(prw > LIMIT * peft)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 15))
