"""A full disk, as the limit on a file's size and as a small file system: a clear error, and nothing half-stored."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from plant import FAST, MakePlant, Plant
from servers import wait_until
from sqlalchemy import func, select, update

from db import queries, recovery, submits
from db.database import Database
from db.states import JobState
from db.tables import chunks, jobs, now_s, requests

# above the empty database's size, below what the jobs here need
_LIMIT_BYTES = 512 * 1024


def _limited(limit_bytes: int = _LIMIT_BYTES) -> list[str]:
    if shutil.which("prlimit") is None:
        pytest.skip("NOT TESTED: a full disk by its limit. There is no prlimit here (package util-linux)")
    return ["prlimit", f"--fsize={limit_bytes}"]


def _num_rows(database: Database) -> list[int]:
    with database.read() as tx:
        return [
            tx.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (jobs, requests, chunks)
        ]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = False
    if shutil.which("mount"):
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("NOT TESTED: a full file system. Mounting a tmpfs is not permitted here (needs root)")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)  # noqa: S607  as mount


@pytest.fixture
def on_disk(disk: Path, plants: list[Plant]) -> MakePlant:
    """An installation whose home is on the small file system."""

    def make(**settings: object) -> Plant:
        home = disk / "home"
        home.mkdir(mode=0o700, exist_ok=True)
        plants.append(Plant(home, **{**FAST, **settings}))
        return plants[-1]

    return make


def _assert_submit_was_refused(plant: Plant, done: "subprocess.CompletedProcess[str]") -> None:
    assert done.returncode == 6, (done.returncode, done.stderr)
    assert "promptmill.db" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert queries.list_jobs(plant.database, 10) == []
    # what could not be deleted then and there goes with a sweep after the submit's lease
    with plant.database.write() as tx:
        tx.execute(
            update(jobs).where(jobs.c.state == JobState.VALIDATING).values(submit_lease_until=now_s() - 1)
        )
    recovery.run_once(plant.database, plant.settings.lease_s, 2)
    assert _num_rows(plant.database) == [0, 0, 0], "something is half-stored"


def test_a_submit_over_the_limit_stores_nothing(small: MakePlant) -> None:
    plant = small()
    source = plant.write(20_000)
    _assert_submit_was_refused(plant, plant.cli.run("submit", str(source), under=_limited()))
    job_id = plant.submit(20)
    plant.start_worker()
    plant.wait_sound(job_id)


def test_a_submit_that_filled_the_disk_is_cleared_away_once_there_is_room(
    on_disk: MakePlant, disk: Path
) -> None:
    """What it staged fills the disk, so that not even its deletion can be written: a worker does that later. SQLite
    needs as much room again as its log has taken, so more than that is made."""
    plant = on_disk()
    (disk / "ballast").write_bytes(b"x" * 5 * 1024 * 1024)
    worker = plant.start_worker()
    lines = "".join(f'{{"prompt": "{number}"}}\n' for number in range(200_000))
    done = plant.cli.run("submit", "-", stdin=lines)
    assert done.returncode == 6, done.stderr
    assert "no space is left" in done.stderr
    assert "Traceback" not in done.stderr
    num_jobs, num_requests, _ = _num_rows(plant.database)
    assert num_jobs == 1, "it could be deleted at once: the disk is not full"
    assert num_requests > 0
    (disk / "ballast").unlink()
    wait_until(
        lambda: _num_rows(plant.database) == [0, 0, 0],
        "the staged rows are gone",
        submits.SUBMIT_LEASE_S + 20,
    )
    plant.wait_sound(plant.submit(100))
    assert worker.supervisor.poll() is None
    assert "Traceback" not in worker.log


def test_a_worker_waits_for_space_and_loses_nothing(on_disk: MakePlant, disk: Path) -> None:
    plant = on_disk(echo_latency_s=0.3)
    worker = plant.start_worker()
    job_id = plant.submit(150)
    plant.wait_results(job_id, 8)
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096) == 4096:
            pass
    wait_until(lambda: "no space is left" in worker.log, "the worker says that the disk is full", 30)
    ballast.unlink()
    plant.wait_sound(job_id)
    assert worker.supervisor.poll() is None
    assert "Traceback" not in worker.log


def test_an_export_over_the_limit_leaves_the_old_file(small: MakePlant, tmp_path: Path) -> None:
    plant = small(echo_latency_s=0, chunk_num_requests=500, engine_num_seqs=64)
    job_id = plant.submit(6_000)
    plant.start_worker(is_ready=False)
    plant.wait_sound(job_id)
    output = tmp_path / "out" / "out.jsonl"
    output.parent.mkdir()
    output.write_text("the old one\n")
    done = plant.cli.run("results", job_id, "-o", str(output), under=_limited())
    assert done.returncode == 1, done.stderr
    assert f"cannot write {output}: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert output.read_text() == "the old one\n"
    assert _names(output.parent) == ["out.jsonl"], "a temporary file stays behind"
    assert plant.cli.run("results", job_id, "-o", str(output)).returncode == 0
    verified = plant.cli.run("verify", job_id, "--output", str(output))
    assert verified.returncode == 0, verified.stderr


def test_an_export_to_a_full_file_system_leaves_the_old_file(small: MakePlant, disk: Path) -> None:
    plant = small(echo_latency_s=0, chunk_num_requests=500, engine_num_seqs=64)
    job_id = plant.submit(6_000)
    plant.start_worker(is_ready=False)
    plant.wait_sound(job_id)
    output = disk / "out.jsonl"
    output.write_text("the old one\n")
    (disk / "ballast").write_bytes(b"x" * (7 * 1024 * 1024 + 512 * 1024))
    done = plant.cli.run("results", job_id, "-o", str(output))
    assert done.returncode == 1, done.stderr
    assert f"cannot write {output}: No space left on device" in done.stderr
    assert output.read_text() == "the old one\n"
    assert _names(disk) == ["ballast", "out.jsonl"]


def test_the_errors_file_of_a_refused_input_may_be_too_big(small: MakePlant, tmp_path: Path) -> None:
    plant = small()
    source, errors = tmp_path / "bad.jsonl", tmp_path / "errors.jsonl"
    source.write_text('{"prompt": 5}\n' * 20_000)
    done = plant.cli.run("validate", str(source), "--errors", str(errors), under=_limited())
    assert done.returncode == 1, done.stderr
    assert str(errors) in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(plant.cli.run("list", "--json").stdout) == []
