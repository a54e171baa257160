"""Start-up times: ``import hftune`` under 0.1 s and ``hftune --help`` under 0.3 s.

    python benchmarks/startup.py [--repeats 15]

Each is a fresh process, measured from outside, beside a Python that does nothing. The first, which
fills the disk cache, does not count. Exits with 1 when a median is over its limit.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = {
    # name: (command, limit in seconds)
    "python -c pass": ([sys.executable, "-c", "pass"], None),
    "import hftune": ([sys.executable, "-c", "import hftune"], 0.1),
    "hftune --help": ([str(Path(sys.executable).with_name("hftune")), "--help"], 0.3),
}


def measure(command: list[str], repeats: int) -> list[float]:
    """Wall times of fresh processes, in seconds."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return times[1:]


def main() -> int:
    """Measures, prints a table, and says whether the limits hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="processes a case (default: 15)")
    repeats = parser.parse_args().repeats
    print(f"{'case':<16}{'median':>9}{'lowest':>9}{'limit':>9}")
    slow = False
    for name, (command, limit) in CASES.items():
        times = measure(command, repeats)
        median = statistics.median(times)
        slow |= limit is not None and median > limit
        shown = f"{limit:.1f} s" if limit else "-"
        print(f"{name:<16}{median:>7.3f} s{min(times):>7.3f} s{shown:>9}")
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
