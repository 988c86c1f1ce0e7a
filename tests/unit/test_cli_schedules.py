"""`schedule`, `workers` and `stats` on the command line."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import update

import cli
from cli import Exit
from db import queries, schedules, transitions
from db.database import Database
from db.tables import schedules as table
from jobs.schedules import ScheduledSubmit
from jobs.submit import SubmitOptions, submit

CRON = ("--cron", "0 2 * * *")

Run = Callable[..., Result]


@pytest.fixture
def source(write: Any) -> Path:
    path: Path = write({"prompt": "x"}, {"prompt": "y"})
    return path


@pytest.fixture
def nightly(run: Run, source: Path) -> str:
    words = ("--timezone", "Europe/Berlin", "--", "submit", source.name, "--name", "nightly-%F")
    run("schedule", "add", "nightly", *CRON, *words)
    return "nightly"


def listed(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("schedule", "list", "--json").stdout)
    return found


# add


def test_add_says_what_was_understood(run: Run, source: Path) -> None:
    result = run("schedule", "add", "nightly", *CRON, "--", "submit", source.name)
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert re.fullmatch(
        r"schedule nightly: At 02:00 every day \(UTC\); next \w{3} \d{4}-\d\d-\d\d \d\d:\d\d, in .+", first
    )
    assert "promptmill worker" in second, "nobody would fire it"


def test_add_has_nothing_to_warn_of_where_a_worker_runs(
    run: Run, source: Path, sqlite_database: Database
) -> None:
    with sqlite_database.write() as tx:
        transitions.register_worker(tx, "w1", "any", "echo", "host", 1)
    assert len(run("schedule", "add", "n", *CRON, "--", "submit", source.name).stderr.splitlines()) == 1


def test_the_words_are_understood_as_submit_understands_them(
    run: Run, source: Path, sqlite_database: Database
) -> None:
    words = ["submit", source.name, "--name", "n", "--priority", "5", "--deadline", "6h", "--seed", "3"]
    words += ["--on-invalid", "skip", "--strict", "--no-check-tokens", "--errors", "bad.jsonl"]
    words += ["--model", "smollm2-135m-instruct", "--json"]
    run("schedule", "add", "n", *CRON, "--", *words)
    stored = ScheduledSubmit.from_json(schedules.get(sqlite_database, "n").submit)
    assert stored.paths == (str(source),)
    assert stored.card_name == "smollm2-135m-instruct"
    assert stored.options.reading.is_model_given
    assert stored.options.errors_path == str(source.parent / "bad.jsonl")
    assert (stored.options.name, stored.options.priority, stored.options.deadline_s) == ("n", 5, 21_600.0)
    assert (stored.options.on_invalid, stored.options.strict, stored.options.check_tokens) == (
        "skip",
        True,
        "never",
    )
    assert stored.options.sampling == {"seed": 3}
    assert listed(run)[0]["arguments"] == words


def test_a_plain_submit_is_kept_with_submit_s_defaults(
    run: Run, source: Path, sqlite_database: Database
) -> None:
    run("schedule", "add", "n", *CRON, "--", "submit", source.name)
    assert ScheduledSubmit.from_json(schedules.get(sqlite_database, "n").submit).options == SubmitOptions()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Missing argument"),
        (["run", "in.jsonl"], "begins with submit, and not with run"),
        (["submit"], "Missing argument 'FILE...'"),
        (["submit", "in.jsonl", "--priority", "high"], "Invalid value for '--priority'"),
        (["submit", "in.jsonl", "--no-such-option"], "No such option"),
        (["submit", "in.jsonl", "--once"], "no place in a schedule"),
        (["submit", "in.jsonl", "--once", "--idempotency-key", "k"], "two ways to say one thing"),
        (["submit", "in.jsonl", "--idempotency-key", "k"], "no place in a schedule"),
        (["submit", "in.jsonl", "--temperature", "3"], "temperature"),
        (["submit", "in.csv", "--template", "{{ a", "--format", "csv"], "--template, line 1"),
        (["submit", "in.csv", "--template", "{{ a }}", "--prompt-column", "b"], "exclude each other"),
        (["submit", "-"], "no stdin"),
    ],
)
def test_a_submit_that_could_not_run_is_refused_at_once(run: Run, words: list[str], said: str) -> None:
    result = run("schedule", "add", "n", *CRON, "--", *words, code=Exit.USAGE)
    assert said in result.stderr
    assert listed(run) == []


def test_a_card_that_is_not_there_is_not_found(run: Run) -> None:
    words = ("--", "submit", "in.jsonl", "--model", "no-such-card")
    assert "no model card" in run("schedule", "add", "n", *CRON, *words, code=Exit.NOT_FOUND).stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cron", "0 25 * * *"], "the hour of the cron line"),
        (["--cron", "0 2 * * *", "--timezone", "Mars"], "no time zone Mars"),
        ([], "Missing option '--cron'"),
    ],
)
def test_a_wrong_time_is_refused(run: Run, options: list[str], said: str) -> None:
    words = ("--", "submit", "in.jsonl")
    assert said in run("schedule", "add", "n", *options, *words, code=Exit.USAGE).stderr
    assert listed(run) == []


def test_a_name_is_taken_unless_it_is_to_be_replaced(run: Run, nightly: str, source: Path) -> None:
    words = ("--", "submit", source.name)
    refused = run("schedule", "add", nightly, "--cron", "5 5 * * *", *words, code=Exit.USAGE)
    assert "--replace" in refused.stderr
    assert listed(run)[0]["cron"] == "0 2 * * *"
    run("schedule", "add", nightly, "--cron", "5 5 * * *", "--replace", *words)
    assert [one["cron"] for one in listed(run)] == ["5 5 * * *"]


def test_a_file_that_is_not_there_yet_is_only_warned_of(run: Run) -> None:
    result = run("schedule", "add", "n", *CRON, "--", "submit", "later.jsonl")
    assert re.search(r"warning: /.*/later\.jsonl is not there yet", result.stderr)
    assert len(listed(run)) == 1


# list, remove, run


def test_list_shows_what_comes_and_what_was(run: Run, nightly: str, sqlite_database: Database) -> None:
    assert run("schedule", "list").stdout.splitlines()[1].split()[:6] == [nightly, "0", "2", "*", "*", "*"]
    job_id = run("schedule", "run", nightly).stdout.strip()
    with sqlite_database.write() as tx:
        tx.execute(update(table).values(last_error="cannot read it"))
    title, row = run("schedule", "list").stdout.splitlines()
    assert title.split() == ["NAME", "CRON", "NEXT", "LAST", "JOB", "FIRED", "LAST", "ERROR"]
    assert re.search(
        rf"Europe/Berlin +\w{{3}} [\d-]+ \d\d:\d\d, in .+ {job_id}  \d+ s ago  cannot read it$", row
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"due_at": 60.0}, "when a worker runs"),
        ({"firing_due_at": 60.0, "lease_id": "l", "lease_until": 1.0, "num_tries": 1}, "firing now"),
    ],
)
def test_list_says_what_is_due(
    run: Run, nightly: str, sqlite_database: Database, values: dict[str, Any], said: str
) -> None:
    with sqlite_database.write() as tx:
        tx.execute(update(table).values(**values))
    row = run("schedule", "list").stdout.splitlines()[1]
    assert nightly in row
    assert said in row
    assert row.endswith("never")


def test_remove_takes_it_away_and_leaves_its_jobs(run: Run, nightly: str) -> None:
    job_id = run("schedule", "run", nightly).stdout.strip()
    run("schedule", "remove", nightly)
    assert listed(run) == []
    run("status", job_id)
    for command in ("remove", "run"):
        assert "promptmill schedule list" in run("schedule", command, nightly, code=Exit.NOT_FOUND).stderr


def test_run_submits_now_and_prints_the_id(run: Run, nightly: str, sqlite_database: Database) -> None:
    result = run("schedule", "run", nightly)
    job = queries.get_job(sqlite_database, result.stdout.strip())
    assert job.name is not None
    assert re.fullmatch(r"nightly-\d{4}-\d\d-\d\d", job.name)
    assert f"{job.id}: 2 requests for" in result.stderr
    assert "so the job waits" in result.stderr


def test_run_says_which_lines_are_bad(run: Run, nightly: str, source: Path) -> None:
    source.write_text("{\n")
    result = run("schedule", "run", nightly, code=Exit.INPUT_REFUSED)
    assert "line 1: not JSON" in result.stderr
    assert listed(run)[0]["last_error"] is None, "whoever ran it was told"


# workers and stats


def test_workers_are_those_alive_unless_all_are_asked_for(run: Run, sqlite_database: Database) -> None:
    assert len(run("workers").stdout.splitlines()) == 1
    with sqlite_database.write() as tx:
        for worker_id in ("w1", "w2"):
            transitions.register_worker(tx, worker_id, "any", "echo", "host", 1)
        transitions.stop_worker(tx, "w2")
    row = run("workers").stdout.splitlines()[1]
    assert re.fullmatch(r"w1 +starting +any +echo +host:1 +0 +0 +\d+ s ago", row)
    assert [one["id"] for one in json.loads(run("workers", "--json").stdout)] == ["w1"]
    every = json.loads(run("workers", "--all", "--json").stdout)
    assert {one["id"]: one["state"] for one in every} == {"w1": "starting", "w2": "stopped"}
    assert set(every[0]) == {
        *("id", "state", "card", "engine", "host", "pid", "num_chunks", "num_results"),
        *("completion_tokens", "completion_tokens_per_s", "heartbeat_age_s"),
    }


def test_stats_by_day_and_card(run: Run, store: Any, finish: Any, sqlite_database: Database) -> None:
    job_id = store({"prompt": "x"}, {"prompt": "y"})
    finish(sqlite_database, job_id)
    today = time.strftime("%Y-%m-%d")
    done = {"requests": 2, "failed": 0, "prompt_tokens": 6, "completion_tokens": 4}
    by_day = json.loads(run("stats", "--days", 3, "--json").stdout)
    assert len(by_day["rows"]) == 3
    assert by_day["rows"][-1] == {"day": today, **done}
    by_card = json.loads(run("stats", "--by", "card", "--days", 1, "--json").stdout)
    assert by_card == {
        "by": "card",
        "rows": [{"card": "hermes-2-pro-mistral-7b", **done, "by_day": [{"day": today, **done}]}],
    }
    assert run("stats").stdout.splitlines()[-1].startswith("hermes-2-pro-mistral-7b")
    run("stats", "--days", 0, code=Exit.USAGE)


def test_stats_by_label_count_a_job_for_each_of_its_labels(
    run: Run, finish: Any, sqlite_database: Database, settings: Any, card: Any, write: Any
) -> None:
    for labels in ({"team": "eval", "night": "1"}, {"team": "eval"}, {}):
        options = SubmitOptions(labels=labels)
        finish(
            sqlite_database,
            submit(sqlite_database, settings, card, str(write({"prompt": "x"})), options).job.id,
        )
    rows = json.loads(run("stats", "--by", "label", "--json").stdout)["rows"]
    assert {row["label"]: row["requests"] for row in rows} == {"night=1": 1, "team=eval": 2}


def test_where_a_terminal_has_no_bars_the_numbers_come_all_the_same(
    store: Any, finish: Any, sqlite_database: Database
) -> None:
    finish(sqlite_database, store({"prompt": "x"}))
    result = CliRunner(charset="ascii").invoke(cli.main, ["stats", "--days", "2"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].split() == ["hermes-2-pro-mistral-7b", "_#"]


def test_the_help_of_add_shows_the_dashes() -> None:
    context = click.Context(cli.main.commands["schedule"].commands["add"])  # type: ignore[attr-defined]
    assert "NAME -- submit FILE..." in context.get_help()
