"""`verify` passes what is sound, and names whatever raw SQL has spoilt, each kind by its own words."""

from collections.abc import Callable, Sequence
from pathlib import Path

import orjson
import pytest
from database.rows import (
    cancel,
    claim,
    commit,
    failure,
    finish_all,
    pass_deadline,
    record,
    register,
    stage,
    success,
)
from soundness import assert_job_is_sound
from sqlalchemy import text

from db import leases, recovery
from db.database import Database
from db.errors import InputError, NotFoundError, UnsoundError, WrongStateError
from db.states import JobState
from jobs.export import export
from jobs.reader import hash_file
from jobs.verify import verify

_NUM_REQUESTS = 10


@pytest.fixture
def input_path(tmp_path: Path) -> Path:
    path = tmp_path / "input.jsonl"
    path.write_text('{"prompt": "hello"}\n' * _NUM_REQUESTS)
    return path


@pytest.fixture
def output_path(tmp_path: Path) -> Path:
    return tmp_path / "output.jsonl"


def _end(database: Database, input_path: Path, state: JobState = JobState.COMPLETED) -> None:
    """A job of five chunks, with failures among the results; unless completed, two chunks never ran."""
    sha256 = hash_file(str(input_path))
    assert sha256 is not None
    register(database)
    stage(database, num_requests=_NUM_REQUESTS, bad=[1, 9])
    commit(database, "job_a", num_requests=_NUM_REQUESTS, num_failed=2, input_sha256=sha256)
    for _ in range(2):
        lease = claim(database)
        pending = [request.index for request in leases.load_requests(database, lease)]
        results = [failure(index) if index == 3 else success(index) for index in pending]
        record(database, lease, results, is_last=True)
    lease = claim(database)
    record(database, lease, [success(4)], is_last=False)
    leases.release(database, lease)
    if state is JobState.COMPLETED:
        finish_all(database)
    elif state is JobState.CANCELLED:
        cancel(database, "job_a")
    else:
        pass_deadline(database, "job_a")
        recovery.run_once(database, 60.0, 3)


@pytest.mark.parametrize("state", [state for state in JobState if state.is_final])
def test_a_sound_job_passes_with_its_input_and_its_output(
    database: Database, input_path: Path, output_path: Path, state: JobState
) -> None:
    _end(database, input_path, state)
    assert_job_is_sound(database, "job_a")
    export(database, "job_a", str(output_path))
    found = verify(database, "job_a", str(input_path), str(output_path))
    num_results = 10 if state is JobState.COMPLETED else 6
    assert found == [
        "10 requests, each in one chunk",
        f"{num_results} results, as many as are counted, in positions without a gap",
        "no chunk runs, no lease lives",
        f"10 outcomes, each index once, as in {output_path}",
        f"{input_path} is the file that was submitted",
    ]
    assert verify(database, "job_a") == [*found[:3], "10 outcomes, each index once"]


def test_a_job_that_was_split_passes(database: Database) -> None:
    stage(database, num_requests=_NUM_REQUESTS, chunk_size=_NUM_REQUESTS)
    commit(database, "job_a", num_requests=_NUM_REQUESTS)
    register(database)
    claim(database)
    assert recovery.worker_died(database, "w1", max_attempts=1).num_split == 1
    finish_all(database)
    assert len(verify(database, "job_a")) == 4


def test_a_job_that_is_missing_staged_or_not_over_is_not_verified(database: Database) -> None:
    stage(database, "staged")
    for job_id in ("missing", "staged"):
        with pytest.raises(NotFoundError):
            verify(database, job_id)
    commit(database, "staged")
    with pytest.raises(WrongStateError):
        verify(database, "staged")


# --- spoilt rows ----------------------------------------------------------------------------------------------

_MISSING_RESULT = """DELETE FROM results WHERE "index" = 4"""
_NEW_RESULT = (
    "INSERT INTO results VALUES ('job_a', {}, 'succeeded', '{{}}', 'stop', 3, 5, NULL, NULL, 1, 1.0, {},"
    " NULL, NULL)"
)

# What was done to the rows of a cancelled job, and what must be said of it. Its chunks begin at 0, 2, 4, 6 and 8,
# those from 4 on are cancelled; results are there for 0, 1, 2, 3, 4 and 9; 1, 3 and 9 failed.
_SPOILT: dict[str, tuple[str, Sequence[str]]] = {
    "a result is missing": ("5 results stored, 6 results counted", [_MISSING_RESULT]),
    "a result too many": ("7 results stored, 6 results counted", [_NEW_RESULT.format(7, 7)]),
    "a result of no request": ("7 results stored, 6 results counted", [_NEW_RESULT.format(99, 7)]),
    "a result in the wrong chunk": (
        "2 results outside a chunk's range or counts, 0 expected",
        [_MISSING_RESULT, _NEW_RESULT.format(7, 7)],
    ),
    "a result outside all chunks": (
        "1 results outside a chunk's range or counts, 0 expected",
        [_MISSING_RESULT, _NEW_RESULT.format(99, 7)],
    ),
    "a gap between positions": (
        "7 is the last result's position, 6 results stored",
        ["UPDATE results SET position = 7 WHERE position = 3"],
    ),
    "a count too low": (
        "6 results stored, 5 results counted",
        ["UPDATE jobs SET num_succeeded = num_succeeded - 1"],
    ),
    "a count too high": (
        "6 results stored, 7 results counted",
        ["UPDATE jobs SET num_failed = num_failed + 1"],
    ),
    "a chunk's count too low": (
        "1 results outside a chunk's range or counts, 0 expected",
        ["UPDATE chunks SET num_succeeded = 0 WHERE first_index = 4"],
    ),
    "a chunk's success counted as a failure": (
        "2 succeeded counted by chunks, 3 by the job",
        ["UPDATE chunks SET num_succeeded = 0, num_failed = 2 WHERE first_index = 0"],
    ),
    "a chunk's tokens": (
        "10 prompt tokens counted by chunks, 9 by the job",
        ["UPDATE chunks SET prompt_tokens = prompt_tokens + 1 WHERE first_index = 0"],
    ),
    "counts that make up for each other": (
        "2 results outside a chunk's range or counts, 0 expected",
        [
            "UPDATE chunks SET num_succeeded = 0 WHERE first_index = 4",
            "UPDATE chunks SET num_succeeded = 1 WHERE first_index = 6",
        ],
    ),
    "a success counted as a failure": (
        "3 outcomes succeeded, 2 counted",
        [
            "UPDATE jobs SET num_succeeded = 2, num_failed = 4",
            "UPDATE chunks SET num_succeeded = 0, num_failed = 2 WHERE first_index = 0",
        ],
    ),
    "a status that changed": (
        "2 outcomes succeeded, 3 counted",
        [
            """UPDATE results SET status = 'failed', result = NULL, error_code = 'x', error_message = 'x'
            WHERE "index" = 4"""
        ],
    ),
    "prompt tokens": (
        "9 prompt tokens of outcomes, 10 counted",
        [
            "UPDATE jobs SET prompt_tokens = prompt_tokens + 1",
            "UPDATE chunks SET prompt_tokens = prompt_tokens + 1 WHERE first_index = 0",
        ],
    ),
    "completion tokens": (
        "16 completion tokens of outcomes, 15 counted",
        ["""UPDATE results SET completion_tokens = 6 WHERE "index" = 4"""],
    ),
    "a copy that nobody counted": (
        "1 outcomes reused, 0 counted",
        ["""UPDATE results SET reused_from = 'job_a:2' WHERE "index" = 4"""],
    ),
    "a copy that the job alone counted": (
        "0 reused counted by chunks, 1 by the job",
        ["UPDATE jobs SET num_reused = 1"],
    ),
    "a chunk is missing": (
        "4 requests covered by chunks, 10 requests submitted",
        ["DELETE FROM chunks WHERE first_index = 4"],
    ),
    "the first chunk is missing": (
        "0 requests covered by chunks, 10 requests submitted",
        ["DELETE FROM chunks WHERE first_index = 0"],
    ),
    "the last chunk is missing": (
        "8 requests covered by chunks, 10 requests submitted",
        ["DELETE FROM chunks WHERE first_index = 8"],
    ),
    "a gap between chunks": (
        "7 requests covered by chunks, 10 requests submitted",
        ["UPDATE chunks SET num_requests = 1 WHERE first_index = 6"],
    ),
    "chunks overlap": (
        "9 requests covered by chunks, 10 requests submitted",
        ["UPDATE chunks SET num_requests = 3 WHERE first_index = 6"],
    ),
    "a chunk too many": (
        "12 requests covered by chunks, 10 requests submitted",
        [
            "INSERT INTO chunks (job_id, first_index, num_requests, state) VALUES ('job_a', 10, 2, 'queued')",
        ],
    ),
    "a request is missing": (
        "9 requests stored, 10 requests submitted",
        ["""DELETE FROM requests WHERE "index" = 5"""],
    ),
    "a request too many": (
        "11 requests stored, 10 requests submitted",
        ["""INSERT INTO requests (job_id, "index", body) VALUES ('job_a', 10, '{}')"""],
    ),
    "a request moved": (
        "index 6 comes where index 5 should",
        ["""UPDATE requests SET "index" = 99 WHERE "index" = 5"""],
    ),
    "the last request moved": (
        "index 99 comes where index 9 should",
        ["""UPDATE requests SET "index" = 99 WHERE "index" = 9"""],
    ),
    "a wrong number in the job": (
        "10 requests stored, 9 requests submitted",
        ["UPDATE jobs SET num_requests = 9"],
    ),
    "a lease is left over": (
        "1 chunks leased, 0 expected of a job that is over",
        [
            "UPDATE chunks SET state = 'running', lease_id = 'l', lease_until = 1.0, worker_id = 'w1'"
            " WHERE first_index = 6"
        ],
    ),
}


@pytest.mark.parametrize("spoilt", _SPOILT)
def test_whatever_is_spoilt_is_named(database: Database, input_path: Path, spoilt: str) -> None:
    expected, statements = _SPOILT[spoilt]
    _end(database, input_path, JobState.CANCELLED)
    verify(database, "job_a")
    with database.write() as tx:
        for statement in statements:
            assert tx.execute(text(statement)).rowcount == 1
    with pytest.raises(UnsoundError) as caught:
        verify(database, "job_a")
    assert str(caught.value) == expected


# --- spoilt files ---------------------------------------------------------------------------------------------

Spoil = Callable[[list[bytes]], list[bytes]]


def _change(name: str, value: object) -> Spoil:
    """The fifth line, with one field changed."""

    def spoil(lines: list[bytes]) -> list[bytes]:
        changed = {**orjson.loads(lines[4]), name: value}
        assert changed != orjson.loads(lines[4])
        return [*lines[:4], orjson.dumps(changed) + b"\n", *lines[5:]]

    return spoil


_SPOILT_OUTPUTS: dict[str, tuple[str, Spoil]] = {
    **{
        f"another {name}": ("line 5 is not the outcome of index 4", _change(name, value))
        for name, value in (
            ("index", 5),
            ("custom_id", "id-5"),
            ("status", "failed"),
            ("result", {"response": "no"}),
            ("finish_reason", "length"),
            ("usage", None),
            ("error", {"code": "x", "message": "x"}),
            ("more", 1),
        )
    },
    "not JSON": (
        "line 5 is not the outcome of index 4",
        lambda lines: [*lines[:4], b"{oops\n", *lines[5:]],
    ),
    "an empty line": ("line 5 is not the outcome of index 4", lambda lines: [*lines[:4], b"\n", *lines[4:]]),
    "a line is missing": ("line 5 is not the outcome of index 4", lambda lines: [*lines[:4], *lines[5:]]),
    "a line twice": (
        "line 5 is not the outcome of index 4",
        lambda lines: [*lines[:4], lines[3], *lines[4:]],
    ),
    "two lines swapped": (
        "line 1 is not the outcome of index 0",
        lambda lines: [lines[1], lines[0], *lines[2:]],
    ),
    "the last line is missing": (
        "line 10 is missing, the outcome of index 9",
        lambda lines: lines[:-1],
    ),
    "the last line is cut off": (
        "line 10 is not the outcome of index 9",
        lambda lines: [*lines[:-1], lines[-1][:20]],
    ),
    "no line at all": ("line 1 is missing, the outcome of index 0", lambda _: []),
    "a line too many": ("has more than 10 lines", lambda lines: [*lines, lines[-1]]),
}


@pytest.mark.parametrize("spoilt", _SPOILT_OUTPUTS)
def test_an_output_that_is_not_the_job_s_is_named(
    sqlite_database: Database, input_path: Path, output_path: Path, spoilt: str
) -> None:
    expected, spoil = _SPOILT_OUTPUTS[spoilt]
    _end(sqlite_database, input_path)
    export(sqlite_database, "job_a", str(output_path))
    lines = output_path.read_bytes().splitlines(keepends=True)
    output_path.write_bytes(b"".join(spoil(lines)))
    with pytest.raises(UnsoundError) as caught:
        verify(sqlite_database, "job_a", str(input_path), str(output_path))
    assert str(caught.value).startswith(str(output_path))
    assert str(caught.value).endswith(expected)


def test_an_output_may_be_written_in_another_way(
    sqlite_database: Database, input_path: Path, output_path: Path
) -> None:
    """Spaces, and the order of fields, say nothing."""
    _end(sqlite_database, input_path)
    export(sqlite_database, "job_a", str(output_path))
    lines = [orjson.loads(line) for line in output_path.read_bytes().splitlines()]
    rewritten = [orjson.dumps(dict(reversed(line.items())), option=orjson.OPT_SORT_KEYS) for line in lines]
    output_path.write_bytes(b" \n".join(rewritten))
    verify(sqlite_database, "job_a", str(input_path), str(output_path))


def test_an_output_of_a_moment_before_the_end_is_not_the_job_s(
    sqlite_database: Database, output_path: Path
) -> None:
    register(sqlite_database)
    stage(sqlite_database)
    commit(sqlite_database, "job_a")
    lease = claim(sqlite_database)
    record(sqlite_database, lease, [success(0), success(1)], is_last=True)
    assert export(sqlite_database, "job_a", str(output_path)) == 2
    finish_all(sqlite_database)
    with pytest.raises(UnsoundError, match="line 3 is missing, the outcome of index 2"):
        verify(sqlite_database, "job_a", output_path=str(output_path))


def test_another_input_is_named(sqlite_database: Database, input_path: Path, tmp_path: Path) -> None:
    _end(sqlite_database, input_path)
    other = tmp_path / "other.jsonl"
    other.write_text(input_path.read_text() + "\n")
    with pytest.raises(
        UnsoundError,
        match=rf"other\.jsonl: not what was .* job's input {(hash_file(str(input_path)) or '')[:12]}…",
    ):
        verify(sqlite_database, "job_a", str(other))


def test_files_that_cannot_be_read_are_named(
    sqlite_database: Database, input_path: Path, tmp_path: Path
) -> None:
    _end(sqlite_database, input_path)
    missing = str(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match=r"cannot read .*missing\.jsonl"):
        verify(sqlite_database, "job_a", missing)
    with pytest.raises(InputError, match=r"cannot read .*missing\.jsonl"):
        verify(sqlite_database, "job_a", output_path=missing)
