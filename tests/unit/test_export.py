"""Result lines: their exact shape, in input order; and a results file that is whole or not there at all."""

import json
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from db import outcomes
from db.database import Database
from db.errors import NotFoundError, OutputError
from db.leases import NewResult
from db.outcomes import Outcome
from db.states import ResultStatus
from jobs.cards import Card
from jobs.control import cancel
from jobs.export import export
from jobs.forms.native import format_line
from jobs.output import check_output

EVENTS = 'data: {"response":"Hi"}\n\ndata: {"response":" there"}\n\ndata: [DONE]\n\n'

Store = Callable[..., str]


@pytest.fixture
def done(store: Store, sqlite_database: Database, finish: Any) -> str:
    """A job with one line of each kind that a finished job can have."""
    job_id = store(
        {"prompt": "x", "custom_id": "a"},
        {"messages": [{"role": "user", "content": "x"}], "stream": True},
        {"prompt": 5, "custom_id": "c"},
        {"prompt": "too long"},
    )
    finish(
        sqlite_database,
        job_id,
        NewResult(0, '{"response":"A \\u00e4 \\"quoted\\" \\n answer"}', "length", 12, 256),
        NewResult(1, json.dumps(EVENTS), "stop", 5, 2),
        NewResult(3, error_code="input_too_long", error_message="4,000 prompt tokens are more than 3,072"),
    )
    return job_id


def exported(database: Database, job_id: str, path: Path) -> list[dict[str, Any]]:
    num_lines = export(database, job_id, str(path))
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len(lines) == num_lines
    return lines


# result lines


def test_the_lines_are_the_contract_s(sqlite_database: Database, done: str, tmp_path: Path) -> None:
    assert exported(sqlite_database, done, tmp_path / "out.jsonl") == [
        {
            "index": 0,
            "custom_id": "a",
            "status": "succeeded",
            "result": {"response": 'A ä "quoted" \n answer'},
            "finish_reason": "length",
            "usage": {"prompt_tokens": 12, "completion_tokens": 256, "total_tokens": 268},
            "error": None,
        },
        {
            "index": 1,
            "custom_id": None,
            "status": "succeeded",
            "result": EVENTS,
            "finish_reason": "stop",
            "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
            "error": None,
        },
        {
            "index": 2,
            "custom_id": "c",
            "status": "failed",
            "result": None,
            "finish_reason": None,
            "usage": None,
            "error": {
                "code": "invalid_request",
                "message": 'line 3, prompt: the value is not of type "string"',
            },
        },
        {
            "index": 3,
            "custom_id": None,
            "status": "failed",
            "result": None,
            "finish_reason": None,
            "usage": None,
            "error": {"code": "input_too_long", "message": "4,000 prompt tokens are more than 3,072"},
        },
    ]


def test_the_result_of_a_succeeded_line_satisfies_the_card_s_output_schema(
    sqlite_database: Database, done: str, tmp_path: Path, card: Card
) -> None:
    for line in exported(sqlite_database, done, tmp_path / "out.jsonl"):
        if line["status"] == "succeeded":
            jsonschema.validate(line["result"], card.output_schema)


def test_fields_stand_in_the_contract_s_order_and_each_line_ends(
    sqlite_database: Database, done: str, tmp_path: Path
) -> None:
    export(sqlite_database, done, str(tmp_path / "out.jsonl"))
    content = (tmp_path / "out.jsonl").read_bytes()
    assert content.endswith(b"}\n")
    assert content.count(b"\n") == 4
    names = ["index", "custom_id", "status", "result", "finish_reason", "usage", "error"]
    assert all(list(json.loads(line)) == names for line in content.splitlines())


def test_requests_that_a_cancel_kept_from_running_are_cancelled(
    store: Store, sqlite_database: Database, finish: Any, tmp_path: Path
) -> None:
    job_id = store(
        {"prompt": "x", "custom_id": "a"}, {"prompt": "x"}, {"prompt": "x", "custom_id": "c"}, chunk_size=1
    )
    finish(sqlite_database, job_id, max_chunks=1)
    cancel(sqlite_database, job_id)
    lines = exported(sqlite_database, job_id, tmp_path / "out.jsonl")
    assert [(line["index"], line["status"]) for line in lines] == [
        (0, "succeeded"),
        (1, "cancelled"),
        (2, "cancelled"),
    ]
    assert lines[2] == {
        "index": 2,
        "custom_id": "c",
        "status": "cancelled",
        "result": None,
        "finish_reason": None,
        "usage": None,
        "error": {"code": "cancelled", "message": "the job was cancelled before this request ran"},
    }


def test_of_a_job_that_runs_there_is_what_is_finished(
    store: Store, sqlite_database: Database, finish: Any, tmp_path: Path
) -> None:
    job_id = store(*[{"prompt": "x"}] * 5, chunk_size=2)
    assert exported(sqlite_database, job_id, tmp_path / "out.jsonl") == []
    finish(sqlite_database, job_id, max_chunks=2)
    assert [line["index"] for line in exported(sqlite_database, job_id, tmp_path / "out.jsonl")] == [
        0,
        1,
        2,
        3,
    ]


def test_lines_are_in_input_order_over_many_pages(
    store: Store, sqlite_database: Database, finish: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "_PAGE_REQUESTS", 4)
    job_id = store(*[{"prompt": "x"}] * 40, chunk_size=3)
    finish(sqlite_database, job_id)
    lines = exported(sqlite_database, job_id, tmp_path / "out.jsonl")
    assert [line["index"] for line in lines] == list(range(40))
    assert lines[17]["result"] == {"response": "answer 17"}


@pytest.mark.parametrize("text", ["\u2028 \u0085 \x0b", "naïve 日本 😀", "\\ud83d", '"}\n{"', "\x00\x1b[2J"])
def test_a_line_is_one_line_whatever_it_holds(text: str) -> None:
    line = format_line(
        Outcome(0, text, ResultStatus.SUCCEEDED, json.dumps({"response": text}), "stop", 1, 1, None, None)
    )
    assert line.count(b"\n") == 1
    assert json.loads(line)["custom_id"] == text
    assert json.loads(line)["result"] == {"response": text}


def test_only_a_copy_says_where_it_was_taken_from() -> None:
    said = (3, None, ResultStatus.SUCCEEDED, '{"response":"x"}', "stop", 1, 1, None, None)
    generated, copy = format_line(Outcome(*said)), format_line(Outcome(*said, reused_from="job_a:0"))
    assert json.loads(copy) == {**json.loads(generated), "reused_from": "job_a:0"}
    assert b"reused_from" not in generated


def test_an_expired_request_has_the_same_shape() -> None:
    line = format_line(
        Outcome(7, None, ResultStatus.EXPIRED, None, None, None, None, "expired", "the deadline was over")
    )
    assert json.loads(line) == {
        "index": 7,
        "custom_id": None,
        "status": "expired",
        "result": None,
        "finish_reason": None,
        "usage": None,
        "error": {"code": "expired", "message": "the deadline was over"},
    }


# the file


def test_the_file_is_for_its_owner_only_and_its_folder_is_made(
    sqlite_database: Database, done: str, tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "down" / "out.jsonl"
    export(sqlite_database, done, str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path], "nothing else is left there"


def failing_outcomes(error: BaseException) -> Callable[..., Iterator[Outcome]]:
    def iterate(*_: object) -> Iterator[Outcome]:
        yield Outcome(0, None, ResultStatus.SUCCEEDED, "{}", "stop", 1, 1, None, None)
        raise error

    return iterate


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device"), NotFoundError("gone")]
)
def test_an_error_in_the_middle_leaves_the_old_file(
    sqlite_database: Database,
    done: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    path = tmp_path / "results" / "out.jsonl"
    path.parent.mkdir()
    path.write_text("of the last time\n")
    monkeypatch.setattr(outcomes, "iterate_outcomes", failing_outcomes(error))
    with pytest.raises((type(error), OutputError)):
        export(sqlite_database, done, str(path))
    assert path.read_text() == "of the last time\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_says_so(
    sqlite_database: Database, done: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(outcomes, "iterate_outcomes", failing_outcomes(full))
    with pytest.raises(
        OutputError, match=r"out\.jsonl: No space left on device; .*\. Nothing of it was kept"
    ):
        export(sqlite_database, done, str(tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


def test_a_job_that_is_not_there_leaves_the_old_file(sqlite_database: Database, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("of the last time\n")
    with pytest.raises(NotFoundError):
        export(sqlite_database, "job_nobody", str(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_text() == "of the last time\n"


def test_a_symbolic_link_stays_and_its_target_is_replaced(
    sqlite_database: Database, done: str, tmp_path: Path
) -> None:
    target = tmp_path / "real" / "results.jsonl"
    target.parent.mkdir()
    target.write_text("of the last time\n")
    (tmp_path / "out.jsonl").symlink_to(target)
    export(sqlite_database, done, str(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").is_symlink()
    assert len(target.read_text().splitlines()) == 4


def test_a_link_to_nothing_yet_makes_its_target(sqlite_database: Database, done: str, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").symlink_to(tmp_path / "new" / "results.jsonl")
    export(sqlite_database, done, str(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").is_symlink()
    assert (tmp_path / "new" / "results.jsonl").is_file()


def test_a_pipe_is_written_to_and_not_replaced(sqlite_database: Database, done: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    export(sqlite_database, done, str(pipe))
    reader.join(30)
    assert len(read[0].splitlines()) == 4
    assert pipe.is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {"home", "in.jsonl", "pipe"}


def test_a_device_is_written_to_and_not_replaced(sqlite_database: Database, done: str) -> None:
    assert export(sqlite_database, done, os.devnull) == 4
    assert Path(os.devnull).is_char_device()


def test_a_device_in_a_folder_of_others_can_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """As everybody but root finds the folder of devices."""
    monkeypatch.setattr(os, "access", lambda path, _: str(path) == os.devnull)
    check_output(os.devnull)


def test_what_a_shell_made_of_stdout_is_written_to(sqlite_database: Database, done: str) -> None:
    """The path of a pipe that is open already leads to nothing that could be renamed."""
    reading, writing = os.pipe()
    try:
        export(sqlite_database, done, f"/proc/self/fd/{writing}")
    finally:
        os.close(writing)
    with os.fdopen(reading) as pipe:
        assert len(pipe.readlines()) == 4


def test_stdout_gets_the_lines_and_stays_open(
    sqlite_database: Database, done: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert export(sqlite_database, done, "-") == 4
    assert not sys.stdout.closed
    captured = capsysbinary.readouterr()
    assert len(captured.out.splitlines()) == 4
    assert captured.err == b""


def test_a_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder; give the name of a file"):
        check_output(str(tmp_path))


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*: Not a directory"):
        check_output(str(tmp_path / "file" / "out.jsonl"))


def test_a_folder_that_may_not_be_written_into_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="cannot write into"):
        check_output(str(tmp_path / "out.jsonl"))


def test_a_link_to_itself_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="leads back to itself"):
        check_output(str(tmp_path / "loop"))


def test_a_name_that_is_too_long_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        check_output(str(tmp_path / ("x" * 300) / "out.jsonl"))
