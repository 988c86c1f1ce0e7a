"""Schedules beside real workers: one job a due time, and what `workers` and `stats` tell of them."""

import json
import time
from pathlib import Path
from typing import Any

from samples import write_requests
from servers import Cli, MakeCli, wait_until
from soundness import assert_job_is_sound
from sqlalchemy import update

from db.database import Database
from db.tables import schedules

CARDS = ("smollm2-135m-instruct", "hermes-2-pro-mistral-7b")


def _json(cli: Cli, *words: str) -> Any:
    done = cli.run(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _make_due(home: Path, due_at: float) -> None:
    database = Database(f"sqlite:///{home / 'promptmill.db'}")
    with database.write() as tx:
        tx.execute(update(schedules).values(due_at=due_at))
    database.close()


def test_workers_of_any_card_make_one_job_of_what_was_missed(
    make_cli: MakeCli, home: Path, tmp_path: Path
) -> None:
    cli = make_cli(sweep_s=0.1)
    source = write_requests(tmp_path / "in.jsonl", 20)
    words = ("--cron", "0 0 1 1 *", "--", "submit", str(source), "--name", "year-%Y")
    assert cli.run("schedule", "add", "yearly", *words).returncode == 0
    for card in (*CARDS, CARDS[1]):
        cli.start("worker", "--model", card, log=tmp_path / "workers.log")
    wait_until(lambda: [one["state"] for one in _json(cli, "workers")] == ["ready"] * 3, "three are ready")
    _make_due(home, 0.0)  # and every year since was missed
    assert cli.run("wait", _first_job(cli)).returncode == 0
    (shown,) = _json(cli, "schedule", "list")
    (job,) = _json(cli, "list")
    assert (shown["last_job_id"], shown["num_fired"], shown["last_error"]) == (job["id"], 1, None)
    assert shown["due_at"] > time.strftime("%Y-%m-%d")
    assert (job["name"], job["model"], job["state"]) == ("year-1970", CARDS[0], "completed")
    # the second due time is another job
    _make_due(home, 86_400.0 * 365)
    wait_until(lambda: _json(cli, "schedule", "list")[0]["num_fired"] == 2, "it is fired again")
    second = _json(cli, "schedule", "list")[0]["last_job_id"]
    assert cli.run("wait", second).returncode == 0
    assert {one["name"] for one in _json(cli, "list")} == {"year-1970", "year-1971"}
    for job_id in (job["id"], second):
        assert_job_is_sound(Database(f"sqlite:///{home / 'promptmill.db'}"), job_id)
    _assert_told(cli, num_results=40)


def _first_job(cli: Cli) -> str:
    return str(wait_until(lambda: _json(cli, "list"), "a job is there")[0]["id"])


def _assert_told(cli: Cli, num_results: int) -> None:
    """What the workers did is told by them, by card, and what was done by day."""

    def done() -> dict[str, int]:
        by_card = dict.fromkeys(CARDS, 0)
        for one in _json(cli, "workers"):
            by_card[one["card"]] += one["num_results"]
        return by_card

    wait_until(lambda: done() == {CARDS[0]: num_results, CARDS[1]: 0}, "a heartbeat told what was done")
    (worker,) = (one for one in _json(cli, "workers") if one["card"] == CARDS[0])
    (row,) = _json(cli, "stats", "--by", "card")["rows"]
    assert (row["card"], row["requests"], row["failed"]) == (CARDS[0], num_results, 2)
    assert worker["completion_tokens"] == row["completion_tokens"] > 0
    assert worker["completion_tokens_per_s"] > 0
    assert (worker["num_chunks"], worker["engine"]) == (0, "echo")


def test_a_run_fires_nothing(make_cli: MakeCli, home: Path, tmp_path: Path) -> None:
    """Its worker is there for its own job, and ends with it."""
    cli = make_cli(sweep_s=0.1, echo_latency_s=1)
    source = write_requests(tmp_path / "in.jsonl", 3)
    assert cli.run("schedule", "add", "n", "--cron", "* * * * *", "--", "submit", str(source)).returncode == 0
    _make_due(home, 60.0)
    assert cli.run("run", str(source)).returncode == 0
    assert len(_json(cli, "list")) == 1
    assert _json(cli, "schedule", "list")[0]["last_fired_at"] is None
