"""`compare` on the command line: what it prints and writes, and its exit codes."""

import json
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from cli import Exit
from db.database import Database
from db.leases import NewResult

Run = Callable[..., Result]
_LINE = {"custom_id": "p", "prompt": "x", "metadata": {"reference": "Paris", "match": "exact"}}


@pytest.fixture
def run(run: Run) -> Run:
    """Runs `promptmill compare`."""
    return partial(run, "compare")


@pytest.fixture
def nights(sqlite_database: Database, store: Any, finish: Any) -> tuple[str, str]:
    """Two jobs of one request: the first is right, the second is not."""

    def night(text: str) -> str:
        job_id = str(store(_LINE))
        finish(sqlite_database, job_id, NewResult(0, json.dumps({"response": text}), "stop", 3, 2))
        return job_id

    return night("Paris"), night("Rome")


def test_a_score_that_falls_is_exit_code_10(run: Run, nights: tuple[str, str]) -> None:
    a, b = nights
    result = run(a, b, code=Exit.SCORE_FELL)
    assert int(Exit.SCORE_FELL) == 10
    assert "fell by more than 0.0%: exact" in result.stdout
    assert "-Paris" in result.stdout
    assert result.stderr == ""
    run(b, a)
    run(a, b, "--tolerance", "100%")
    run(a, "last", "--tolerance", "0.5", "--by", "index", code=Exit.SCORE_FELL)


def test_json_is_alone_on_stdout(run: Run, nights: tuple[str, str]) -> None:
    told = json.loads(run(*nights, "--json", code=Exit.SCORE_FELL).stdout)
    assert (told["num_compared"], told["fallen"]) == (1, ["exact"])


def test_reports_are_private_files_and_written_also_when_a_score_fell(
    run: Run, nights: tuple[str, str], tmp_path: Path
) -> None:
    markdown, page = tmp_path / "new" / "report.md", tmp_path / "report.html"
    result = run(*nights, "--markdown", markdown, "--html", page, code=Exit.SCORE_FELL)
    assert f"report: {markdown}\nreport: {page}\n" == result.stderr
    assert markdown.read_text().startswith("# job_")
    assert page.read_text().endswith("</html>\n")
    for path in (markdown, page):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_report_may_go_to_stdout_in_place_of_the_text(run: Run, nights: tuple[str, str]) -> None:
    assert run(*nights, "--markdown", "-", code=Exit.SCORE_FELL).stdout.startswith("# job_")
    assert run(*nights, "--html", "-", code=Exit.SCORE_FELL).stdout.endswith("</html>\n")


@pytest.mark.parametrize(
    "options",
    [
        ["--html", "-", "--markdown", "-"],
        ["--html", "-", "--json"],
        ["--html", "x", "--markdown", "x"],
        ["--tolerance", "a lot"],
        ["--by", "prompt"],
    ],
)
def test_options_that_cannot_be_are_refused(run: Run, nights: tuple[str, str], options: list[str]) -> None:
    assert run(*nights, *options, code=Exit.USAGE).stdout == ""
    assert not Path("x").exists()


def test_a_path_that_cannot_be_written_is_found_before_the_work(
    run: Run, nights: tuple[str, str], tmp_path: Path
) -> None:
    result = run(*nights, "--html", tmp_path, code=Exit.UNEXPECTED)
    assert "is a folder" in result.stderr
    assert result.stdout == ""


def test_a_job_that_is_not_over_is_said(run: Run, nights: tuple[str, str], store: Any) -> None:
    waiting = store(_LINE, {"prompt": 5})
    result = run(nights[0], waiting, "--by", "index", code=Exit.INPUT_REFUSED)
    assert "have no request in common" in result.stderr
    result = run(waiting, waiting, "--by", "index")
    assert f"note: {waiting} is queued: 1 of its requests had no outcome" in result.stderr


def test_a_job_that_is_not_there_is_named(run: Run, nights: tuple[str, str]) -> None:
    assert "there is no job nope" in run(nights[0], "nope", code=Exit.NOT_FOUND).stderr
