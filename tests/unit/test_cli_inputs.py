"""Patterns, selections, --n and labels on the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from cli import Exit
from db import queries
from db.database import Database
from jobs.cards import Card
from jobs.selection import Picker, selection_of
from jobs.settings import Settings
from jobs.submit import SubmitOptions
from workers.local_run import submit_or_resume

Run = Callable[..., Result]


@pytest.fixture
def many(write: Any) -> Path:
    return Path(write(*({"prompt": f"say {number}", "custom_id": f"r{number}"} for number in range(100))))


@pytest.fixture
def submit(run: Run) -> Callable[..., dict[str, Any]]:
    """The status of a job that is submitted with these words."""

    def go(*words: object) -> dict[str, Any]:
        job_id = run("submit", *words).stdout.strip()
        return dict(json.loads(run("status", job_id, "--json").stdout))

    return go


Submit = Callable[..., dict[str, Any]]


# patterns


def test_a_quoted_pattern_is_expanded_and_verify_takes_it_too(
    run: Run, submit: Submit, write: Any, sqlite_database: Database, finish: Any
) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        write({"prompt": "x", "custom_id": name}, name=name)
    job = submit("*.jsonl")
    assert job["counts"]["total"] == 2
    finish(sqlite_database, job["id"])
    results = [json.loads(line) for line in run("results", job["id"]).stdout.splitlines()]
    assert [line["custom_id"] for line in results] == ["a.jsonl", "b.jsonl"]
    assert "a.jsonl, b.jsonl are the files" in run("verify", job["id"], "--input", "?.jsonl").stdout
    assert json.loads(run("validate", "./*.jsonl", "--json").stdout)["valid"] == 2


@pytest.mark.parametrize("command", ["run", "submit", "validate"])
def test_a_pattern_without_a_match_and_a_folder_are_refused(run: Run, tmp_path: Path, command: str) -> None:
    stderr = run(command, "none/*.jsonl", code=Exit.INPUT_REFUSED).stderr
    assert stderr == "error: no file matches none/*.jsonl; see what there is: ls none\n"
    stderr = run(command, tmp_path, code=Exit.INPUT_REFUSED).stderr
    assert f"{tmp_path} is a folder; give its files, by a pattern like '{tmp_path}/*.jsonl'" in stderr


# selections


def test_a_selection_is_taken_shown_and_named_in_the_manifest(
    run: Run, submit: Submit, many: Path, sqlite_database: Database, finish: Any
) -> None:
    job = submit(many, "--shard", "2/4", "--sample", "10", "--limit", "5", "--seed", "3")
    selection = selection_of("2/4", "10", 5, 3)
    shown = {"shard": "2/4", "sample": 10, "seed": 3, "limit": 5}
    assert (job["selection"], job["counts"]["total"]) == (shown, 5)
    assert "selection shard 2/4, sample 10, seed 3, limit 5" in run("status", job["id"]).stdout
    assert json.loads(run("manifest", job["id"]).stdout)["input"]["selection"] == shown
    finish(sqlite_database, job["id"])
    results = [json.loads(line) for line in run("results", job["id"]).stdout.splitlines()]
    assert [line["index"] for line in results] == list(range(5))
    assert [line["custom_id"] for line in results] == [
        f"r{place}" for place in Picker(selection, 100).take(range(100))
    ]
    assert "in.jsonl is the file that was submitted" in run("verify", job["id"], "--input", many).stdout
    assert submit(many)["selection"] is None


def test_other_selections_are_other_jobs_and_the_same_one_is_the_same(run: Run, many: Path) -> None:
    def once(*words: str) -> str:
        return run("submit", many, "--once", *words).stdout.strip()

    selections: list[list[str]] = [
        *([], ["--shard", "1/2"], ["--shard", "2/2"], ["--limit", "3"]),
        *(["--sample", "5"], ["--sample", "5", "--seed", "1"], ["--seed", "1"], ["--sample", "50%"]),
    ]
    ids = [once(*words) for words in selections]
    assert len(set(ids)) == len(ids)
    assert [once(*words) for words in selections] == ids
    assert once("--label", "team=eval") == ids[0], "a label makes no other job"


def test_run_goes_on_with_the_same_selection_only(
    sqlite_database: Database, settings: Settings, card: Card, many: Path
) -> None:
    def resume(**selection: Any) -> tuple[str, bool]:
        options = SubmitOptions(selection=selection_of(**selection))
        submitted = submit_or_resume(sqlite_database, settings, card, str(many), options)
        return submitted.job.id, submitted.created

    first, is_new = resume(shard="1/2")
    assert is_new
    for other in ({"shard": "2/2"}, {}, {"sample": "5"}, {"shard": "1/2", "limit": 40}):
        other_id, is_new = resume(**other)
        assert is_new
        assert resume(**other) == (other_id, False)
    assert resume(shard="1/2") == (first, False)


def test_a_key_of_another_selection_is_warned_of(run: Run, many: Path) -> None:
    first = run("submit", many, "--idempotency-key", "k", "--shard", "1/2").stdout.strip()
    warning = f"warning: this is not the input that {first} was submitted with"
    assert warning in run("submit", many, "--idempotency-key", "k", "--shard", "2/2").stderr
    assert warning not in run("submit", many, "--idempotency-key", "k", "--shard", "1/2").stderr


def test_validate_checks_the_sample_that_submit_takes(run: Run, submit: Submit, write: Any) -> None:
    path = write(*({"prompt": "x"} if number % 2 else {"prompt": number} for number in range(50)))
    words = ("--sample", "12", "--seed", "4")
    report = json.loads(run("validate", path, *words, "--json", code=Exit.INPUT_REFUSED).stdout)
    assert report["lines"] == 12
    assert submit(path, *words, "--on-invalid", "skip")["counts"]["failed"] == report["invalid"] > 0
    assert json.loads(run("validate", path, "--shard", "2/2", "--json").stdout)["valid"] == 25


@pytest.mark.parametrize("command", ["run", "submit", "validate"])
def test_a_selection_that_takes_nothing_or_is_none_stores_nothing(
    run: Run, many: Path, command: str, sqlite_database: Database
) -> None:
    stderr = run(command, many, "--shard", "101/200", code=Exit.INPUT_REFUSED).stderr
    assert "none of its 100 requests is taken (shard 101/200); take more" in stderr
    assert "--shard 3/2: give i/n" in run(command, many, "--shard", "3/2", code=Exit.USAGE).stderr
    assert "--sample x: give a number" in run(command, many, "--sample", "x", code=Exit.USAGE).stderr
    assert "--limit" in run(command, many, "--limit", "0", code=Exit.USAGE).stderr
    assert queries.list_jobs(sqlite_database, 10) == []


def test_stdin_is_sampled_too(run: Run, many: Path) -> None:
    job_id = run("submit", "-", "--sample", "7", stdin=many.read_text()).stdout.strip()
    shown = json.loads(run("status", job_id, "--json").stdout)
    assert (shown["counts"]["total"], shown["selection"]) == (7, {"sample": 7, "seed": 0})
    run("cancel", job_id)
    assert "is the file that was submitted" in run("verify", job_id, "--input", many).stdout


# n


def test_n_is_shown_with_the_parameters_and_makes_another_job(
    run: Run, many: Path, sqlite_database: Database, finish: Any
) -> None:
    first = run("submit", many, "--once", "--n", "3", "--limit", "1").stdout.strip()
    assert run("submit", many, "--once", "--n", "2", "--limit", "1").stdout.strip() != first
    assert json.loads(run("manifest", first).stdout)["sampling"]["job"] == {"n": 3}
    finish(sqlite_database, first)
    (line,) = run("results", first, "--with-params").stdout.splitlines()
    assert json.loads(line)["params"]["n"] == 3
    assert (
        "--n: with temperature 0" in run("submit", many, "--n", 2, "--temperature", 0, code=Exit.USAGE).stderr
    )
    assert "'--n'" in run("submit", many, "--n", 129, code=Exit.USAGE).stderr


# labels


def test_labels_are_shown_and_found(run: Run, submit: Submit, many: Path) -> None:
    a = submit(many, "--label", "team=eval", "--label", "night=1")
    b = submit(many, "--label", "team=data")
    submit(many)
    assert list(a["labels"].items()) == [("night", "1"), ("team", "eval")]
    assert "labels    night=1, team=eval" in run("status", a["id"]).stdout
    assert json.loads(run("manifest", a["id"]).stdout)["job"]["labels"] == a["labels"]

    def listed(*words: str) -> list[str]:
        return [job["id"] for job in json.loads(run("list", "--json", *words).stdout)]

    assert listed("--label", "team=eval") == listed("--label", "night", "--label", "team") == [a["id"]]
    assert listed("--label", "team") == [b["id"], a["id"]]
    assert listed("--label", "team", "--limit", "1") == [b["id"]]
    assert listed("--label", "team", "--state", "completed") == listed("--label", "other") == []
    assert a["id"] in run("list", "--label", "night=1").stdout


def test_a_label_that_is_none_is_refused_before_anything_is_stored(
    run: Run, many: Path, sqlite_database: Database
) -> None:
    for words in (("submit", many), ("run", many)):
        assert "give KEY=VALUE" in run(*words, "--label", "team", code=Exit.USAGE).stderr
    assert "a key has 1 to 63" in run("list", "--label", "=x", code=Exit.USAGE).stderr
    assert queries.list_jobs(sqlite_database, 10) == []
