"""`rerun`, `retry` and `results --merged` on the command line: what they print, and their exit codes."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from cli import Exit
from db import queries
from db.database import Database
from db.leases import NewResult
from workers import tickets

Run = Callable[..., Result]
_PAGE = (Path(__file__).parents[2] / "docs" / "reruns.md").read_text()


@pytest.fixture
def queued_id(store: Any) -> str:
    return str(store({"prompt": "x", "custom_id": "a"}, {"prompt": "x"}, {"prompt": 5}, {"prompt": "y"}))


@pytest.fixture
def done_id(queued_id: str, sqlite_database: Database, finish: Any) -> str:
    """1 broke, 2 is a bad line, 3 is too long."""
    broke = NewResult(1, error_code="engine_error", error_message="it broke")
    finish(sqlite_database, queued_id, broke, NewResult(3, error_code="input_too_long", error_message="long"))
    return queued_id


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What the broker was told."""
    told: list[tuple[str, int]] = []

    def announce(_: object, card_name: str, num_chunks: int) -> bool:
        told.append((card_name, num_chunks))
        return True

    monkeypatch.setattr(tickets, "announce", announce)
    return told


def test_a_rerun_prints_the_new_jobs_id(run: Run, done_id: str, announced: list[tuple[str, int]]) -> None:
    result = run("rerun", done_id, "--name", "again")
    job_id = result.stdout.strip()
    assert f"{job_id}: 2 requests of {done_id} for hermes-2-pro-mistral-7b" in result.stderr
    assert "1 bad lines that fit are left out" in result.stderr
    assert announced == [("hermes-2-pro-mistral-7b", 2)]
    status = json.loads(run("status", job_id, "--json").stdout)
    assert (status["parent"], status["name"], status["counts"]["total"]) == (done_id, "again", 2)
    assert f"parent    {done_id}" in run("status", job_id).stdout
    assert [job["parent"] for job in json.loads(run("list", "--json").stdout)] == [done_id, None]
    assert json.loads(run("manifest", job_id).stdout)["job"]["parent"] == done_id


def test_a_rerun_says_it_as_json_too(run: Run, done_id: str) -> None:
    options = ("--where", "index=0", "--where", "index=1", "--set", "max_tokens=512", "--priority", "4")
    result = run("rerun", done_id, *options, "--json")
    made = json.loads(result.stdout)
    assert made.pop("counts")["total"] == 2
    job_id = made.pop("id")
    assert made == {"parent": done_id, "state": "queued", "bad_lines": 0}
    assert "no broker answers, so the job waits" in result.stderr
    assert json.loads(run("status", job_id, "--json").stdout)["priority"] == 4


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--where", "status=lost"], Exit.USAGE, "status is one of"),
        (["--where", "status=expired"], Exit.INPUT_REFUSED, "fits status=expired"),
        (["--set", "max_token=5"], Exit.USAGE, "give FIELD=VALUE, of the fields"),
        (["--set", "max_tokens=0"], Exit.INPUT_REFUSED, "2 of 2 lines are bad; nothing was stored"),
        (["--on-invalid", "no"], Exit.USAGE, "Invalid value"),
    ],
)
def test_a_rerun_that_cannot_be_stores_nothing(
    run: Run, done_id: str, options: list[str], code: Exit, message: str
) -> None:
    result = run("rerun", done_id, *options, code=code)
    assert message in result.stderr
    assert result.stdout == ""
    assert len(json.loads(run("list", "--json").stdout)) == 1


def test_bad_ones_are_named_by_their_index(run: Run, done_id: str) -> None:
    result = run("rerun", done_id, "--set", "max_tokens=0", code=Exit.INPUT_REFUSED)
    assert f"request of {done_id} with index 3: max_tokens: " in result.stderr


def test_a_job_that_is_not_over_is_refused(run: Run, queued_id: str) -> None:
    run("rerun", queued_id, code=Exit.WRONG_STATE)
    assert "has nothing to retry; 1 stay failed" in run("retry", queued_id).stderr


def test_a_retry_says_what_runs_again_and_what_stays(
    run: Run, done_id: str, announced: list[tuple[str, int]], sqlite_database: Database, finish: Any
) -> None:
    result = run("retry", done_id)
    assert f"{done_id} is queued: 1 requests run again; 2 stay failed" in result.stderr
    assert result.stdout == ""
    assert announced == [("hermes-2-pro-mistral-7b", 1)]
    finish(sqlite_database, done_id)
    assert f"{done_id} has nothing to retry; 2 stay failed" in run("retry", done_id).stderr
    assert len(announced) == 1
    assert "but for the 1 that were run again" in run("verify", done_id).stdout
    assert queries.get_job(sqlite_database, done_id).completion_tokens_per_s is None


def test_a_retry_that_cannot_be_is_explained(run: Run, done_id: str, queued_id: str) -> None:
    result = run("retry", done_id, "--where", "code=input_too_long", code=Exit.USAGE)
    assert "the same request would fail again" in result.stderr
    made = run("rerun", done_id).stdout.strip()
    run("cancel", made)
    result = run("retry", made, code=Exit.WRONG_STATE)
    assert f"promptmill rerun {made}" in result.stderr
    run("retry", "job_nope", code=Exit.NOT_FOUND)
    assert queued_id == done_id


def test_the_commands_of_the_page_do_what_it_says(
    run: Run, store: Any, sqlite_database: Database, finish: Any, tmp_path: Path
) -> None:
    """Each in its order; whatever a command queues has succeeded before the next."""
    job_id = store(*[{"prompt": f"p{n}", "custom_id": f"id-{n}"} for n in range(9)])
    codes = {1: "engine_error", 3: "max_total_tokens_exceeded", 8: "engine_crash"}
    failed = [NewResult(n, error_code=code, error_message="it broke") for n, code in codes.items()]
    finish(sqlite_database, job_id, *failed, NewResult(5, '{"response": "cut"}', "length", 3, 2))
    commands = re.findall(r"^\$ promptmill (.+)$", _PAGE, re.MULTILINE)
    assert len(commands) == 6
    for command in commands:
        run(*shlex.split(command.replace("job_4k9x2m7tqa", job_id)))
        for job in queries.list_jobs(sqlite_database, 9):
            finish(sqlite_database, job.id)
    listed = reversed(json.loads(run("list", "--json").stdout))
    assert [(job["parent"], job["name"], job["counts"]["total"]) for job in listed] == [
        (None, None, 9),
        (job_id, None, 1),
        (job_id, None, 1),
        (job_id, "once-more", 2),
    ]
    merged = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["index"] for line in merged if line["job"] != job_id] == [5]
    assert [line["index"] for line in merged if line["status"] == "failed"] == [3]


def test_merged_results_wait_for_the_whole_family(
    run: Run, done_id: str, sqlite_database: Database, finish: Any
) -> None:
    job_id = run("rerun", done_id).stdout.strip()
    result = run("results", done_id, "--merged", code=Exit.WRONG_STATE)
    assert f"promptmill wait {job_id} waits for it, --partial takes" in result.stderr
    lines = run("results", done_id, "--merged", "--partial").stdout.splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["succeeded", "failed", "failed", "failed"]
    finish(sqlite_database, job_id)
    lines = run("results", done_id, "--merged").stdout.splitlines()
    assert [json.loads(line)["job"] for line in lines] == [done_id, job_id, done_id, job_id]
    result = run("results", done_id, "--merged", "--follow", code=Exit.USAGE)
    assert "--merged gives requests in input order" in result.stderr
