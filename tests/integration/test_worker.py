"""Workers beside other shells: submit, follow, cancel and stop while real worker processes run."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from samples import read_results, write_requests
from servers import Cli, MakeCli, Postgres, Redis, wait_until
from soundness import assert_job_is_sound
from sqlalchemy import select

from db.database import Database
from db.tables import chunks, results, workers


def _submit(cli: Cli, path: Path, *options: str) -> str:
    done = cli.run("submit", str(path), "--json", *options)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["id"])


def _status(cli: Cli, job_id: str) -> dict[str, Any]:
    done = cli.run("status", job_id, "--json")
    assert done.returncode == 0, done.stderr
    status: dict[str, Any] = json.loads(done.stdout)
    counts = dict(status["counts"])
    assert counts.pop("total") == sum(counts.values())
    return status


def _sqlite(home: Path) -> Database:
    return Database(f"sqlite:///{home / 'promptmill.db'}")


def _child_of(process: "subprocess.Popen[str]") -> int:
    """The worker process under a supervisor: its child that is not Redis (Celery renames the process)."""
    for entry in Path("/proc").iterdir():
        try:
            is_child = f"PPid:\t{process.pid}\n" in (entry / "status").read_text()
            if is_child and b"redis" not in (entry / "cmdline").read_bytes():
                return int(entry.name)
        except OSError:  # no process, or one that has just ended
            continue
    raise AssertionError("no worker process")


def test_everything_works_from_a_second_shell(make_cli: MakeCli, home: Path, tmp_path: Path) -> None:
    cli = make_cli(echo_latency_s=0.1)
    worker = cli.start("worker")
    source = write_requests(tmp_path / "in.jsonl", 50)
    job_id = _submit(cli, source, "--name", "first")
    assert _status(cli, job_id)["name"] == "first"
    waited = cli.run("wait", job_id, "--timeout", "60", "--json")
    assert waited.returncode == 0, waited.stderr
    status = json.loads(waited.stdout)
    assert status["state"] == "completed"
    assert status["counts"]["succeeded"] == 49
    assert status["requests_per_s"] > 0
    output = tmp_path / "out.jsonl"
    assert cli.run("results", job_id, "-o", str(output)).returncode == 0
    assert len(read_results(output)) == 50
    assert_job_is_sound(_sqlite(home), job_id)
    assert worker.poll() is None


def test_a_job_waits_for_its_first_worker(make_cli: MakeCli, home: Path, tmp_path: Path) -> None:
    cli = make_cli()
    source = write_requests(tmp_path / "in.jsonl", 10)
    submitted = cli.run("submit", str(source), "--json")
    assert submitted.returncode == 0
    assert "the job waits" in submitted.stderr
    job_id = json.loads(submitted.stdout)["id"]
    assert cli.run("wait", job_id, "--timeout", "0.2").returncode == 8
    cli.start("worker")
    assert cli.run("wait", job_id, "--timeout", "60").returncode == 0
    assert_job_is_sound(_sqlite(home), job_id)


def test_cancel_keeps_what_is_finished_and_stops_the_rest(
    make_cli: MakeCli, home: Path, tmp_path: Path
) -> None:
    cli = make_cli(echo_latency_s=1)
    cli.start("worker")
    job_id = _submit(cli, write_requests(tmp_path / "in.jsonl", 400))
    wait_until(lambda: _status(cli, job_id)["counts"]["succeeded"] >= 8, "eight results")
    asked_at = time.monotonic()
    assert cli.run("cancel", job_id).returncode == 0
    assert cli.run("cancel", job_id).returncode == 0, "a second cancel does no harm"
    assert cli.run("wait", job_id, "--timeout", "20").returncode == 7
    assert time.monotonic() - asked_at < 10
    outcomes = assert_job_is_sound(_sqlite(home), job_id)
    statuses = [outcome.status.value for outcome in outcomes]
    assert statuses.count("succeeded") >= 8
    assert statuses.count("cancelled") > 300
    output = tmp_path / "out.jsonl"
    assert cli.run("results", job_id, "-o", str(output)).returncode == 0
    assert {line["error"]["code"] for line in read_results(output) if line["status"] == "cancelled"} == {
        "cancelled"
    }


def test_sigterm_gives_the_leases_back_uncounted(make_cli: MakeCli, home: Path, tmp_path: Path) -> None:
    cli = make_cli(echo_latency_s=30)
    job_id = _submit(cli, write_requests(tmp_path / "in.jsonl", 100))
    worker = cli.start("worker")
    wait_until(lambda: _status(cli, job_id)["counts"]["running"] > 0, "a chunk runs")
    asked_at = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert time.monotonic() - asked_at < 10
    with _sqlite(home).read() as tx:
        rows = tx.execute(select(chunks.c.state, chunks.c.attempt, chunks.c.lease_id)).all()
        states = tx.execute(select(workers.c.state)).scalars().all()
    assert {tuple(row) for row in rows} == {("queued", 0, None)}
    assert states == ["stopped"]
    make_cli().start("worker")
    assert make_cli().run("wait", job_id, "--timeout", "60").returncode == 0
    assert_job_is_sound(_sqlite(home), job_id)


def test_a_killed_worker_takes_its_session_along_and_its_chunks_run_elsewhere(
    make_cli: MakeCli, home: Path, tmp_path: Path
) -> None:
    slow = make_cli(echo_latency_s=2)
    job_id = _submit(slow, write_requests(tmp_path / "in.jsonl", 100))
    first = slow.start("worker")
    wait_until(lambda: _status(slow, job_id)["counts"]["running"] > 0, "a chunk runs")
    os.kill(_child_of(first), signal.SIGKILL)
    assert first.wait(10) == 137, "the supervisor says that its worker was killed"
    quick = make_cli()
    quick.start("worker")
    waited = quick.run("wait", job_id, "--timeout", "60")
    assert waited.returncode == 0, waited.stderr
    assert_job_is_sound(_sqlite(home), job_id)


def test_an_urgent_job_overtakes(make_cli: MakeCli, tmp_path: Path) -> None:
    cli = make_cli(echo_latency_s=0.5)
    big = _submit(cli, write_requests(tmp_path / "big.jsonl", 3_000))
    cli.start("worker")
    wait_until(lambda: _status(cli, big)["counts"]["succeeded"] > 0, "the big job runs")
    urgent = _submit(cli, write_requests(tmp_path / "urgent.jsonl", 8), "--priority", "10")
    assert cli.run("wait", urgent, "--timeout", "30").returncode == 0
    assert _status(cli, big)["state"] == "in_progress"
    assert cli.run("cancel", big).returncode == 0


def test_work_goes_on_while_redis_is_away(
    make_cli: MakeCli, redis: Redis, home: Path, tmp_path: Path
) -> None:
    cli = make_cli(echo_latency_s=0.3, broker_url=redis.url)
    cli.start("worker")
    first = _submit(cli, write_requests(tmp_path / "first.jsonl", 200))
    wait_until(lambda: _status(cli, first)["counts"]["succeeded"] > 0, "the job runs")
    redis.kill()
    second = _submit(cli, write_requests(tmp_path / "second.jsonl", 20))
    assert cli.run("wait", first, "--timeout", "60").returncode == 0
    redis.start()
    assert cli.run("wait", second, "--timeout", "60").returncode == 0
    for job_id in (first, second):
        assert_job_is_sound(_sqlite(home), job_id)


def test_two_workers_on_postgres_give_what_one_on_sqlite_gives(
    make_cli: MakeCli, postgres: Postgres, redis: Redis, tmp_path: Path
) -> None:
    source = write_requests(tmp_path / "in.jsonl", 300)
    alone = make_cli()
    assert alone.run("run", str(source), "-o", str(tmp_path / "sqlite.jsonl")).returncode == 0
    url = postgres.create_database("two_workers")
    shared = make_cli(database_url=url, broker_url=redis.url, echo_latency_s=0.02)
    refused = shared.run("submit", str(source))
    assert refused.returncode == 6
    assert "promptmill db upgrade" in refused.stderr
    assert shared.run("db", "upgrade").returncode == 0
    for _ in range(2):
        shared.start("worker")
    database = Database(url)

    def both_ready() -> bool:
        with database.read() as tx:
            return tx.execute(select(workers.c.state)).scalars().all() == ["ready", "ready"]

    wait_until(both_ready, "two workers")
    job_id = _submit(shared, source)
    assert shared.run("wait", job_id, "--timeout", "60").returncode == 0
    assert shared.run("results", job_id, "-o", str(tmp_path / "postgres.jsonl")).returncode == 0
    assert read_results(tmp_path / "postgres.jsonl") == read_results(tmp_path / "sqlite.jsonl")
    assert_job_is_sound(database, job_id)
    with database.read() as tx:
        assert tx.execute(select(results.c.attempt).distinct()).scalars().all() == [1]
    database.close()


@pytest.mark.parametrize("option", ["--once", "--idempotency-key=nightly"])
def test_two_submits_at_once_make_one_job(make_cli: MakeCli, tmp_path: Path, option: str) -> None:
    cli = make_cli()
    source = write_requests(tmp_path / "in.jsonl", 2_000)
    started = [cli.start("submit", str(source), "--json", option) for _ in range(3)]
    printed = [json.loads(process.communicate(timeout=60)[0]) for process in started]
    assert len({answer["id"] for answer in printed}) == 1
    assert sorted(answer["created"] for answer in printed) == [False, False, True]
    assert len(json.loads(cli.run("list", "--json").stdout)) == 1


def test_a_worker_outlives_the_redis_that_somebody_else_started(
    make_cli: MakeCli, home: Path, tmp_path: Path
) -> None:
    slow = make_cli(echo_latency_s=1)
    running = slow.start("run", str(write_requests(tmp_path / "first.jsonl", 30)), "-o", str(tmp_path / "o"))
    wait_until(lambda: (home / "redis.sock").exists(), "the run has started its Redis")
    cli = make_cli()
    cli.start("worker")
    running.communicate(timeout=60)
    assert running.returncode == 0
    job_id = _submit(cli, write_requests(tmp_path / "second.jsonl", 20))
    assert cli.run("wait", job_id, "--timeout", "60").returncode == 0
    assert_job_is_sound(_sqlite(home), job_id)
