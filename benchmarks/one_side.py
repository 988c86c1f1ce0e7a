"""One side of a comparison in a process of its own, which tells its time and its peak memory."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

SIDES = ("ours", "raw")


def alternating(num_pairs: int) -> Iterator[tuple[int, str]]:
    """Each pair's number with each side in turn."""
    for number in range(num_pairs):
        for side in SIDES:
            yield number, side


def measured(module: str, side: str, *arguments: str) -> tuple[float, float]:
    """Seconds and peak megabytes of one side of `module`, whose `main` is ours."""
    home = str(Path(".promptmill").absolute())
    done = subprocess.run(
        [sys.executable, "-m", module, side, *arguments],
        env={**os.environ, "PROMPTMILL_HOME": os.environ.get("PROMPTMILL_HOME", home)},
        check=True,
        capture_output=True,
        text=True,
    )
    took_s, peak_mb = done.stdout.split()
    return float(took_s), float(peak_mb)


def main(sides: Mapping[str, Callable[[str, str], object]]) -> None:
    """Run the side that the command line names, and print what `measured` reads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("url")
    parser.add_argument("path")
    options = parser.parse_args()
    began = time.perf_counter()
    sides[options.side](options.url, options.path)
    took_s = time.perf_counter() - began
    print(took_s, _peak_mb())


def _peak_mb() -> float:
    """Not getrusage's, which is no less than what the process had that started this one."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024
