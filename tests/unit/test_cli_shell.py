"""The commands that people look with: status of many, --watch, tail, show, errors; and that none is slow to start."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

import cli
from cli import Exit
from db import queries
from db.database import Database
from db.leases import NewResult
from jobs import control
from jobs.comparison.examples import shown

Run = Callable[..., Result]


@pytest.fixture
def done_id(store: Any, sqlite_database: Database, finish: Any) -> str:
    """Four requests: two succeeded, one failed, and one line was bad."""
    job_id = str(
        store({"prompt": "one"}, {"prompt": "two", "custom_id": "b"}, {"prompt": "three"}, {"prompt": 4})
    )
    finish(sqlite_database, job_id, NewResult(2, error_code="input_too_long", error_message="too long"))
    return job_id


# status


def test_status_of_one_is_an_object_and_of_several_an_array(run: Run, done_id: str, store: Any) -> None:
    second = store({"prompt": "x"})
    one = json.loads(run("status", done_id, "--json").stdout)
    several = json.loads(run("status", done_id, second, "--json").stdout)
    assert (one["id"], several[0], several[1]["id"]) == (done_id, one, second)


def test_status_of_several_is_a_table_in_the_order_asked(run: Run, done_id: str, store: Any) -> None:
    second = store({"prompt": "x"})
    title, *lines = run("status", second, done_id).stdout.splitlines()
    assert title.startswith("JOB")
    assert [line.split()[0] for line in lines] == [second, done_id]
    assert run("list").stdout.splitlines() == [title, *lines], "the same columns as the list's"


def test_status_names_the_job_that_is_not_there(run: Run, done_id: str) -> None:
    assert "no job job_nobody" in run("status", done_id, "job_nobody", code=Exit.NOT_FOUND).stderr


def test_a_watch_ends_with_the_job_and_prints_what_status_does(
    run: Run, store: Any, sqlite_database: Database, finish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = store({"prompt": "x"})
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        finish(sqlite_database, job_id)

    monkeypatch.setattr("jobs.progress.time.sleep", sleep)
    result = run("status", job_id, "--watch")
    assert slept == [1.0]
    assert result.stdout == run("status", job_id).stdout
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["queued", "completed"]
    assert json.loads(run("status", job_id, "--watch", "--json").stdout)["state"] == "completed"


def test_a_watch_that_is_interrupted_exits_with_130(
    run: Run, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.progress.time.sleep", interrupt)
    result = run("status", store({"prompt": "x"}), "--watch", code=Exit.INTERRUPTED)
    assert result.stdout == ""
    assert result.stderr.endswith("interrupted\n")


def test_only_one_job_is_watched(run: Run, done_id: str) -> None:
    assert "one job" in run("status", done_id, done_id, "--watch", code=Exit.USAGE).stderr


# tail


def test_tail_shows_the_last_results_and_how_the_job_ended(run: Run, done_id: str) -> None:
    result = run("tail", done_id)
    # the bad line had its result first, the others as they were written
    assert result.stdout.splitlines() == [
        '3  -  failed  -  invalid_request: line 4, prompt: the value is not of type "string"',
        "0  -  succeeded  2  answer 0",
        "1  b  succeeded  2  answer 1",
        "2  -  failed  -  input_too_long: too long",
    ]
    assert result.stderr.startswith(f"{done_id} completed in ")
    assert run("tail", done_id, "-n", 1).stdout.splitlines() == ["2  -  failed  -  input_too_long: too long"]
    assert run("tail", done_id, "-n", 0).stdout == ""


def test_tail_as_json_is_result_lines(run: Run, done_id: str) -> None:
    tailed = [json.loads(line) for line in run("tail", done_id, "--json").stdout.splitlines()]
    exported = [json.loads(line) for line in run("results", done_id).stdout.splitlines()]
    assert sorted(tailed, key=lambda line: int(line["index"])) == exported


def test_tail_goes_on_until_the_job_is_over(
    run: Run, store: Any, sqlite_database: Database, finish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = store(*[{"prompt": "x"}] * 5, chunk_size=1)
    finish(sqlite_database, job_id, max_chunks=2)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 1:
            finish(sqlite_database, job_id, max_chunks=1)
        else:
            control.cancel(sqlite_database, job_id)

    monkeypatch.setattr("jobs.follow.time.sleep", sleep)
    result = run("tail", job_id, "-n", 1)
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["1", "2"], "and none that never ran"
    assert "3 succeeded, 2 cancelled" in result.stderr


# show


def test_show_finds_a_request_by_its_index_and_by_its_custom_id(run: Run, done_id: str) -> None:
    by_index = run("show", done_id, 1).stdout
    assert by_index == run("show", done_id, "--custom-id", "b").stdout
    assert by_index.splitlines()[0] == f"request    1 of {done_id}, which has 0 to 3"
    assert by_index.endswith("── prompt ──\ntwo\n\n── response ──\nanswer 1\n")


def test_show_as_json_has_what_results_has_and_more(run: Run, done_id: str) -> None:
    exported = [
        json.loads(line)
        for line in run("results", done_id, "--with-input", "--with-params").stdout.splitlines()
    ]
    for index, line in enumerate(exported):
        found = json.loads(run("show", done_id, index, "--json").stdout)
        assert {name: found[name] for name in line} == line
    assert found["request"] is None


def test_show_of_what_is_not_there_says_what_there_is(run: Run, done_id: str) -> None:
    for arguments in ((4,), ("--custom-id", "no\x1b[2J")):
        result = run("show", done_id, *arguments, code=Exit.NOT_FOUND)
        assert "0 to 3" in result.stderr
        assert result.stdout == ""
        assert "\x1b" not in result.stderr


@pytest.mark.parametrize("arguments", [(), (1, "--custom-id", "b"), (-1,), ("one",)])
def test_show_takes_one_request(run: Run, done_id: str, arguments: tuple[object, ...]) -> None:
    run("show", done_id, *arguments, code=Exit.USAGE)


# errors


def test_errors_are_grouped_and_have_examples(run: Run, done_id: str) -> None:
    text = run("errors", done_id).stdout
    assert text.splitlines()[0] == f"2 of 4 requests of {done_id} failed (50.0%)"
    assert "input_too_long  1 (25.0%)" in text
    assert "  2  too long" in text
    assert f"promptmill show {done_id} 3" in text
    found = json.loads(run("errors", done_id, "--json", "--examples", 0).stdout)
    assert [(one["code"], one["count"], one["examples"]) for one in found["errors"]] == [
        ("input_too_long", 1, []),
        ("invalid_request", 1, []),
    ]


def test_no_errors_are_no_error(run: Run, store: Any) -> None:
    job_id = store({"prompt": "x"})
    assert run("errors", job_id).stdout == f"none of 1 request of {job_id} failed\n"
    assert json.loads(run("errors", job_id, "--json").stdout)["errors"] == []


# a terminal is not acted on


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("form", ["jsonl", "csv", "openai"])
def test_results_on_a_terminal_do_nothing_to_it(
    store: Any, sqlite_database: Database, finish: Any, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    from jobs.export import export, options_for

    job_id = store({"prompt": "x", "custom_id": "é\x1b[2J"})
    evil = json.dumps({"response": "a\x1b[2J\x9b2Jb\rc — 日本\n"}, ensure_ascii=False)
    finish(sqlite_database, job_id, NewResult(0, evil, "stop", 1, 1))
    written: dict[bool, str] = {}
    for is_terminal in (False, True):
        to = io.BytesIO()
        stdout = _Terminal(to) if is_terminal else io.TextIOWrapper(to)
        monkeypatch.setattr(sys, "stdout", stdout)
        options = options_for(queries.get_job(sqlite_database, job_id), "-", form=form)
        assert export(sqlite_database, job_id, "-", options) == 1
        written[is_terminal] = to.getvalue().decode()
    assert "日本" in written[True]
    kept = written[True].replace("\r\n", "\n").replace("\n", "")
    assert kept.replace("\ufffd", "x").isprintable()
    assert not written[False].replace("\r\n", "\n").replace("\n", "").isprintable(), (
        "a file has them as they are"
    )


def test_what_commands_say_of_a_user_s_words_does_nothing_either(capsys: pytest.CaptureFixture[str]) -> None:
    cli._say("no \x1b[2J job\nbut a \x9b second line")
    assert capsys.readouterr().err == "no \ufffd[2J job\nbut a \ufffd second line\n"
    assert shown("a\x1b[2J\nb") == "a\ufffd[2J\nb"


# quick to start


def test_without_a_terminal_none_of_these_imports_what_draws(done_id: str) -> None:
    program = (
        "import sys, cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "finally: sys.stderr.write(str('rich.console' in sys.modules or 'rich.live' in sys.modules))"
    )
    for words in (
        ["status", done_id],
        ["list"],
        ["errors", done_id],
        ["show", done_id, "0"],
        ["status", done_id, "--watch"],
    ):
        ended = subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False, timeout=60
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr.endswith("False"), words
