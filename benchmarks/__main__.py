"""`python -m benchmarks [--quick]`: prints a table, and writes out/benchmarks.json."""

import argparse
import json
from pathlib import Path

from benchmarks import generation

_SUBJECTS = (generation,)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="one small round of each, under 5 minutes")
    quick = parser.parse_args().quick
    rows = [row for subject in _SUBJECTS for row in subject.measure(quick=quick)]
    print(f"{'subject':44}{'promptmill':>14}{'raw':>14}{'ratio':>8}")
    for row in rows:
        print(f"{row.subject:44}{row.value:>14,.1f}{row.raw:>14,.1f}{row.ratio:>8.2f}  {row.unit}")
    path = Path("out/benchmarks.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
