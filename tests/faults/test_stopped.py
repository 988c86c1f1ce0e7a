"""SIGTERM and Ctrl-C in the middle of long generations, once and twice; and a deadline that passes."""

import signal
import time

import pytest
from plant import MakePlant, Plant
from servers import wait_until
from sqlalchemy import text

from db import queries
from db.states import ResultStatus
from jobs.control import cancel

_LONG_S = 600
_EXIT_S = 10
SIGNALS = [signal.SIGTERM, signal.SIGINT]
# how long after the first signal the second comes
GAPS_S = [0.0, 0.3]


def _assert_nothing_is_held(plant: Plant, job_id: str) -> None:
    """A cancel is over at once: no chunk runs, no lease must expire first."""
    wait_until(lambda: plant.job(job_id).counts.running == 0, "the leases are given back", 2)
    cancel(plant.database, job_id)
    plant.wait_sound(job_id, 5)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_worker_gives_its_chunks_back_uncounted(make_plant: MakePlant, number: signal.Signals) -> None:
    plant = make_plant(echo_latency_s=_LONG_S, lease_s=120)
    worker = plant.start_worker()
    job_id = plant.submit(40)
    plant.wait_running(job_id)
    worker.supervisor.send_signal(number)
    assert worker.supervisor.wait(_EXIT_S) == 0
    plant.start_worker(echo_latency_s=0.02)
    plant.wait_sound(job_id)
    assert plant.num_rerun(job_id) == 0
    assert "Traceback" not in worker.log


def test_a_worker_says_that_it_drains(small: MakePlant) -> None:
    """The database itself writes down each state that the worker's row is in, however short."""
    plant = small(echo_latency_s=_LONG_S, lease_s=120)
    with plant.database.write() as tx:
        tx.execute(text("CREATE TABLE said (state TEXT)"))
        tx.execute(
            text(
                "CREATE TRIGGER say AFTER UPDATE OF state ON workers BEGIN INSERT INTO said VALUES (new.state); END"
            )
        )
    worker = plant.start_worker()
    job_id = plant.submit(40)
    plant.wait_running(job_id)
    worker.supervisor.terminate()
    assert worker.supervisor.wait(_EXIT_S) == 0
    with plant.database.read() as tx:
        said = list(tx.execute(text("SELECT state FROM said ORDER BY rowid")).scalars())
    assert said == ["ready", "draining", "stopped"]
    _assert_nothing_is_held(plant, job_id)


@pytest.mark.parametrize("gap_s", GAPS_S)
@pytest.mark.parametrize("number", SIGNALS)
def test_a_worker_told_twice(small: MakePlant, number: signal.Signals, gap_s: float) -> None:
    plant = small(echo_latency_s=_LONG_S, lease_s=120)
    worker = plant.start_worker()
    job_id = plant.submit(40)
    plant.wait_running(job_id)
    worker.supervisor.send_signal(number)
    time.sleep(gap_s)
    worker.supervisor.send_signal(number)
    assert worker.supervisor.wait(_EXIT_S) in (0, 137)
    _assert_nothing_is_held(plant, job_id)
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("gap_s", [None, *GAPS_S])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_told_once_and_twice(small: MakePlant, number: signal.Signals, gap_s: float | None) -> None:
    plant = small(echo_latency_s=_LONG_S, lease_s=120)
    running = plant.cli.start("run", str(plant.write(40)), "-o", str(plant.home / "out.jsonl"))
    job_id = wait_until(lambda: [job.id for job in queries.list_jobs(plant.database, 1)], "the job")[0]
    plant.wait_running(job_id)
    running.send_signal(number)
    if gap_s is not None:
        time.sleep(gap_s)
        running.send_signal(number)
    _, said = running.communicate(timeout=_EXIT_S)
    assert running.returncode == 130, said
    assert "Traceback" not in said
    _assert_nothing_is_held(plant, job_id)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_told_at_its_very_start(small: MakePlant, number: signal.Signals) -> None:
    """Before its worker is there, and again while it is on its way out."""
    plant = small(echo_latency_s=_LONG_S)
    for after_s in (0.6, 0.9, 1.2):
        running = plant.cli.start("run", str(plant.write(40)), "-o", str(plant.home / "out.jsonl"))
        time.sleep(after_s)
        running.send_signal(number)
        while running.poll() is None:
            running.send_signal(number)
            time.sleep(0.01)
        _, said = running.communicate(timeout=_EXIT_S)
        # before Python has come so far that it can answer, the kernel does
        assert running.returncode in (130, -number), said
        assert "Traceback" not in said
    for job in queries.list_jobs(plant.database, 10):
        _assert_nothing_is_held(plant, job.id)


def test_a_deadline_passes_while_it_runs(make_plant: MakePlant) -> None:
    """What is finished stays, the rest is expired, and `wait` says so."""
    plant = make_plant(echo_latency_s=0.5)
    plant.start_worker()
    job_id = plant.submit(200, deadline_s=2)
    waited = plant.cli.run("wait", job_id, "--timeout", "20")
    assert waited.returncode == 7, waited.stderr
    outcomes = plant.wait_sound(job_id)
    statuses = [outcome.status for outcome in outcomes]
    assert plant.job(job_id).state == "expired"
    assert statuses.count(ResultStatus.SUCCEEDED) >= 8
    assert statuses.count(ResultStatus.EXPIRED) == 200 - statuses.count(ResultStatus.SUCCEEDED)
    done = plant.cli.run("results", job_id, "-o", str(plant.home / "out.jsonl"))
    assert done.returncode == 0, done.stderr
    assert len((plant.home / "out.jsonl").read_text().splitlines()) == 200
    plant.wait_sound(plant.submit(16))


def test_a_run_past_its_deadline_exits_with_its_code(small: MakePlant) -> None:
    plant = small(echo_latency_s=1)
    output = plant.home / "out.jsonl"
    done = plant.cli.run("run", str(plant.write(100)), "-o", str(output), "--deadline", "3s")
    assert done.returncode == 7, done.stderr
    plant.wait_sound(queries.list_jobs(plant.database, 1)[0].id)
    assert len(output.read_text().splitlines()) == 100
