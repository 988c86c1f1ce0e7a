"""`results` and `run -o` on the command line: forms, their options, and how to go on after a stop."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import text

import cli
from cli import Exit
from db.database import Database
from db.leases import NewResult
from jobs.forms import Form

Run = Callable[..., Result]


@pytest.fixture
def queued_id(store: Any) -> str:
    return str(store({"prompt": "x", "custom_id": "a"}, {"prompt": "x"}, {"prompt": 5}))


@pytest.fixture
def done_id(queued_id: str, sqlite_database: Database, finish: Any) -> str:
    """Two failed, of three."""
    finish(
        sqlite_database, queued_id, NewResult(1, error_code="input_too_long", error_message="4,000 tokens")
    )
    return queued_id


def _came_as(database: Database, input_format: str) -> None:
    with database.write() as tx:
        tx.execute(text("UPDATE jobs SET input_format = :format"), {"format": input_format})


def _lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_formats_of_the_option_are_those_of_the_code() -> None:
    for name in ("run", "results"):
        option = next(one for one in cli.main.commands[name].params if one.name == "form")
        assert list(option.type.choices) == [form.value for form in Form]  # type: ignore[attr-defined]


def test_results_come_back_in_the_form_that_the_input_had(
    run: Run, done_id: str, sqlite_database: Database, tmp_path: Path
) -> None:
    _came_as(sqlite_database, "openai")
    result = run("results", done_id, "-o", tmp_path / "out.jsonl")
    assert f"3 of 3 results in {tmp_path / 'out.jsonl'}, those that did not succeed in" in result.stderr
    assert len((tmp_path / "out.errors.jsonl").read_text().splitlines()) == 2
    _came_as(sqlite_database, "cloudflare")
    assert json.loads(run("results", done_id).stdout)["success"] is True
    assert _lines(run("results", done_id, "--format", "jsonl"))[0]["status"] == "succeeded"


def test_the_ending_of_the_output_names_a_form(run: Run, done_id: str, tmp_path: Path) -> None:
    run("results", done_id, "-o", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().startswith("index,custom_id,status,response,")


def test_results_can_be_chosen_ordered_and_cut(run: Run, done_id: str) -> None:
    options = ("--order", "finished", "--from", 1, "--only", "failed", "--only", "succeeded")
    assert [(line["index"], line["position"]) for line in _lines(run("results", done_id, *options))] == [
        (0, 2),
        (1, 3),
    ]
    result = run("results", done_id, "--fields", "index,request.prompt", "--only", "succeeded")
    assert _lines(result) == [{"index": 0, "request.prompt": "x"}]
    assert _lines(run("results", done_id, "--with-input"))[0]["request"]["prompt"] == "x"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fields", "nope"], "nope is no field of a result line"),
        (["--format", "openai", "--with-input"], "has no room for --fields, --with-input or --with-params"),
        (["--errors-output", "e"], "only the format openai has a file for errors"),
        (["--follow", "--format", "parquet"], "parquet has no lines"),
        (["--from", "3", "--order", "input"], "not --order input"),
        (["--from", "-1"], "Invalid value"),
        (["--format", "xml"], "Invalid value"),
        (["--only", "lost"], "Invalid value"),
    ],
)
def test_an_option_that_cannot_be_is_explained(
    run: Run, done_id: str, options: list[str], message: str
) -> None:
    result = run("results", done_id, *options, code=Exit.USAGE)
    assert message in result.stderr
    assert result.stdout == ""


def test_following_a_job_that_is_over_gives_it_whole(run: Run, done_id: str) -> None:
    result = run("results", done_id, "--follow")
    assert [line["position"] for line in _lines(result)] == [1, 2, 3]
    assert f"{done_id} is over: 3 results, the last at position 3" in result.stderr


@pytest.mark.parametrize("before", [[], ["--from", "1"], ["--from=1"]])
def test_following_that_is_stopped_says_how_to_go_on(
    run: Run, queued_id: str, monkeypatch: pytest.MonkeyPatch, before: list[str]
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.follow.time.sleep", interrupt)
    result = run("results", queued_id, "--follow", *before, "--only", "failed", code=Exit.INTERRUPTED)
    again = f"promptmill results {queued_id} --follow --only failed --from 1"
    assert f"stopped after position 1. To go on: {again}\n" in result.stderr
    assert len(_lines(result)) == (0 if before else 1)


# --- run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished_run(sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, finish: Any) -> None:
    """`run` whose worker has every request succeed at once."""
    from db import queries
    from workers import local_run

    def run_job(*arguments: Any) -> Any:
        job_id = arguments[3]
        finish(sqlite_database, job_id)
        return queries.get_job(sqlite_database, job_id)

    monkeypatch.setattr(local_run, "run_job", run_job)


@pytest.mark.usefixtures("finished_run")
def test_run_writes_every_form(run: Run, write: Any, tmp_path: Path) -> None:
    path = write({"prompt": "x"}, {"prompt": "y"})
    run("run", path, "-o", tmp_path / "out.csv")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3
    run("run", path, "-o", tmp_path / "out", "--format", "openai", "--errors-output", tmp_path / "errors")
    assert json.loads((tmp_path / "out").read_text().splitlines()[0])["response"]["status_code"] == 200
    run("run", path, "-o", tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_bytes().startswith(b"PAR1")


@pytest.mark.usefixtures("finished_run")
def test_a_run_whose_results_cannot_be_written_says_how_to_write_them(
    run: Run, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.export._write", interrupt)
    result = run("run", write({"prompt": "x"}), "--format", "csv", code=Exit.INTERRUPTED)
    assert "To write them: promptmill results job_" in result.stderr
    assert "-o - --format csv" in result.stderr


def test_run_without_pyarrow_fails_before_any_work(
    run: Run, write: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    result = run("run", write({"prompt": "x"}), "-o", tmp_path / "out.parquet", code=Exit.USAGE)
    assert "pip install 'promptmill[export]'" in result.stderr
    assert run("list", "--json").stdout.strip() == "[]"
