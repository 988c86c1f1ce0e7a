"""How long it takes until something happens, in seconds of wall time, medians of several runs.

`--help` and `status`: a process from its start to its end. The load: `promptmill worker` from its start until its
worker is ready, less what `python -m benchmarks.raw_llm` takes from its start until its `LLM` with the same arguments
is; in alternating pairs. The first token: from ready to the result of a one-token job that waits by then.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.row import Row
from benchmarks.sides import MODEL, raw_llm, submit_one, worker
from db import queries
from db.upgrade import open_database
from jobs.progress import wait
from jobs.settings import load_settings

_UNIT = "s"


def measure(*, quick: bool) -> list[Row]:
    num_runs, num_pairs = (3, 1) if quick else (7, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        help_s = [_command_s(folder, "--help") for _ in range(num_runs)]
        (folder / "home").mkdir(exist_ok=True)
        job_id = submit_one(load_settings(home=folder / "home", model=MODEL))
        status_s = [_command_s(folder, "status", job_id) for _ in range(num_runs)]
        loads = [_load(folder / str(number), number % 2 == 0) for number in range(num_pairs)]
    return [
        Row("start: promptmill --help", _UNIT, help_s, reach=0.25, is_less_better=True),
        Row("start: promptmill status", _UNIT, status_s, reach=0.5, is_less_better=True),
        Row(
            "start: load of worker and of LLM",
            _UNIT,
            [ours for ours, _, _ in loads],
            [raw for _, raw, _ in loads],
        ),
        Row(
            "start: what a worker adds to the load",
            _UNIT,
            [ours - raw for ours, raw, _ in loads],
            reach=1.0,
            is_less_better=True,
        ),
        Row(
            "start: ready to first token", _UNIT, [one for _, _, one in loads], reach=0.5, is_less_better=True
        ),
    ]


def _command_s(folder: Path, *arguments: str) -> float:
    began_at = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        env={**os.environ, "PROMPTMILL_HOME": str(folder / "home")},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - began_at


def _load(folder: Path, is_ours_first: bool) -> tuple[float, float, float]:  # noqa: FBT001  told by position
    """The worker's load, the raw one's, and from the worker's being ready to the first token."""
    folder.mkdir()
    raw_s = 0.0 if is_ours_first else _raw_s()
    with worker(folder, has_waiting_job=True) as ours:
        database = open_database(ours.settings.resolved_database_url)
        (job,) = queries.list_jobs(database, 1)
        job = wait(database, job.id, timeout_s=60)
        database.close()
        ready_at = ours.ready_at
    return ready_at - ours.started_at, raw_s or _raw_s(), (job.finished_at or 0) - ready_at


def _raw_s() -> float:
    began_at = time.time()
    with raw_llm():
        return time.time() - began_at
