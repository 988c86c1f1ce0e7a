"""`python -m benchmarks [--quick] [SUBJECT ...]`: prints a table, and writes out/benchmarks.json."""

import argparse
import importlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.row import Row

_SUBJECTS = (
    "generation",
    "prefixes",
    "start",
    "gpu",
    "ingest",
    "admission",
    "export",
    "control_plane",
    "growth",
    "urgency",
    "simulation",
)


def _line(row: Row) -> str:
    raw = "" if row.raw is None else f"{row.raw:,.1f}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    reach = "" if row.reach is None else f"{'<=' if row.is_less_better else '>='} {row.reach:,g}"
    verdict = {None: "", True: "reached", False: "NOT REACHED"}[row.is_reached]
    return f"{row.subject:52}{row.value:>14,.1f}{raw:>14}{ratio:>7}  {row.unit:22}{reach:>10} {verdict} {row.note}"


def print_table(rows: Sequence[Row]) -> None:
    print(f"{'subject':52}{'promptmill':>14}{'raw':>14}{'ratio':>7}  {'unit':22}{'reach':>10}", flush=True)
    for row in rows:
        print(_line(row).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="one small round of each, under 5 minutes")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(_SUBJECTS)}")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.subjects if name not in _SUBJECTS]:
        parser.error(f"{unknown[0]} is no subject; there are {', '.join(_SUBJECTS)}")
    rows: list[Row] = []
    path = Path("out/benchmarks.json")
    path.parent.mkdir(exist_ok=True)
    for name in arguments.subjects or _SUBJECTS:
        began_at = time.monotonic()
        print(f"{name} ...", flush=True)
        found = importlib.import_module(f"benchmarks.{name}").measure(quick=arguments.quick)
        # at once: a long run that is cut off keeps what it has
        print_table(found)
        print(f"{name} took {time.monotonic() - began_at:.0f} s", flush=True)
        rows += found
        path.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n")
    print_table(rows)


if __name__ == "__main__":
    main()
