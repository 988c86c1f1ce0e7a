"""Submitting: a file becomes a whole job or nothing at all, once for each key, in bounded memory."""

import io
import json
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from db import queries, recovery, submits
from db.database import Database
from db.errors import DatabaseUnavailableError, InputError, LeaseLostError, NotFoundError
from db.outcomes import iterate_outcomes
from db.queries import Counts
from db.states import JobState
from db.tables import chunks, jobs, metadata, requests
from jobs import submit as submitting
from jobs.cards import Card, find_card
from jobs.reader import InputFile, RawLine
from jobs.settings import Settings
from jobs.submit import InputRefusedError, OnInvalid, SubmitOptions, Submitted, new_job_id, submitted_as_dict

GOOD = {"prompt": "x"}
BAD = {"prompt": 5}

Submit = Callable[..., Submitted]


@pytest.fixture
def submit(sqlite_database: Database, settings: Settings, card: Card) -> Submit:
    """Submits a file for the Hermes card; options, a card and changed settings as keywords."""

    def run(
        path: Path | str, *, card: Card = card, change: dict[str, Any] | None = None, **options: Any
    ) -> Submitted:
        changed = settings.model_copy(update=change or {})
        return submitting.submit(sqlite_database, changed, card, str(path), SubmitOptions(**options))

    return run


def num_rows(database: Database) -> dict[str, int]:
    """How many rows each of our tables has, where there are any."""
    with database.read() as tx:
        counted = {
            name: tx.execute(select(func.count()).select_from(table)).scalar_one()
            for name, table in metadata.tables.items()
        }
    return {name: number for name, number in counted.items() if number}


def chunks_of(database: Database, job_id: str) -> list[tuple[int, int, int, str]]:
    with database.read() as tx:
        rows = tx.execute(
            select(chunks.c.first_index, chunks.c.num_requests, chunks.c.num_failed, chunks.c.state)
            .where(chunks.c.job_id == job_id)
            .order_by(chunks.c.first_index)
        )
        return [(row[0], row[1], row[2], row[3]) for row in rows]


# a whole job


def test_a_submitted_job_is_queued_with_all_its_requests(
    submit: Submit, sqlite_database: Database, write: Any, card: Card
) -> None:
    lines = [{**GOOD, "custom_id": f"r{number}"} for number in range(5)]
    submitted = submit(write(*lines), name="nightly", priority=7)
    job = submitted.job
    assert (submitted.created, job.state, job.name, job.priority) == (True, JobState.QUEUED, "nightly", 7)
    assert job.counts == Counts(pending=5)
    assert (job.card_name, job.card_sha256) == (card.name, card.sha256)
    assert job.input_name == "in.jsonl"
    assert queries.get_card(sqlite_database, job.id) == card.text, (
        "the job keeps the card it was checked against"
    )
    with sqlite_database.read() as tx:
        rows = tx.execute(
            select(requests.c.index, requests.c.custom_id, requests.c.body).order_by(requests.c.index)
        ).all()
    assert [(row[0], row[1], json.loads(row[2])) for row in rows] == [
        (index, f"r{index}", line) for index, line in enumerate(lines)
    ]


def test_what_submit_prints_is_the_contract_s(submit: Submit, write: Any) -> None:
    submitted = submit(write(GOOD, GOOD))
    assert json.loads(json.dumps(submitted_as_dict(submitted))) == {
        "id": submitted.job.id,
        "state": "queued",
        "counts": {
            "total": 2,
            "pending": 2,
            "running": 0,
            "succeeded": 0,
            "failed": 0,
            "cancelled": 0,
            "expired": 0,
        },
        "created": True,
    }


def test_stdin_is_submitted_like_a_file(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b'{"prompt":"x"}\n{"prompt":"y"}'))
    monkeypatch.setattr("sys.stdin", stdin)
    job = submit("-").job
    assert (job.counts.total, job.input_name) == (2, "stdin")


def test_a_name_that_is_not_utf8_is_kept_as_well_as_it_goes(submit: Submit, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    path.write_bytes(b'{"prompt":"x"}')
    job = submit(path, name=os.fsdecode(b"caf\xe9")).job
    assert (job.input_name, job.name) == ("caf\ufffd.jsonl", "caf\ufffd")


def test_job_ids_can_be_read_aloud_and_do_not_repeat() -> None:
    ids = {new_job_id() for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(len(id_) == 14 and id_.startswith("job_") and not set(id_[4:]) & set("ilou") for id_ in ids)


# chunks


@pytest.mark.parametrize(
    ("num_lines", "sizes"), [(1, [1]), (3, [3]), (4, [3, 1]), (6, [3, 3]), (10, [3, 3, 3, 1])]
)
def test_a_chunk_has_at_most_so_many_requests(
    submit: Submit, sqlite_database: Database, write: Any, num_lines: int, sizes: list[int]
) -> None:
    job = submit(write(*[GOOD] * num_lines), change={"chunk_num_requests": 3}).job
    found = chunks_of(sqlite_database, job.id)
    assert [size for _, size, _, _ in found] == sizes
    assert [first for first, _, _, _ in found] == [sum(sizes[:number]) for number in range(len(sizes))]


def test_a_chunk_has_at_most_so_many_tokens_unless_one_request_has_more(
    submit: Submit, sqlite_database: Database, write: Any
) -> None:
    tokens = [400, 400, 400, 2_000, 100, 900, 100]
    job = submit(
        write(*[{**GOOD, "max_tokens": number} for number in tokens]), change={"chunk_max_tokens": 1_000}
    ).job
    assert [size for _, size, _, _ in chunks_of(sqlite_database, job.id)] == [2, 1, 1, 1, 1, 1]


def test_a_job_of_many_batches_has_every_request_in_one_chunk(
    submit: Submit, sqlite_database: Database, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "_BATCH_REQUESTS", 7)
    job = submit(write(*[GOOD] * 50), change={"chunk_num_requests": 4}).job
    covered = [
        index
        for first, size, _, _ in chunks_of(sqlite_database, job.id)
        for index in range(first, first + size)
    ]
    assert covered == list(range(50))
    assert num_rows(sqlite_database) == {"jobs": 1, "chunks": 13, "requests": 50}


# bad lines


def test_a_file_with_a_bad_line_is_refused_whole_and_every_bad_line_is_reported(
    submit: Submit, sqlite_database: Database, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "_BATCH_REQUESTS", 2)
    path = write(*[GOOD] * 20, BAD, *[GOOD] * 20, b"{", {**GOOD, "max_tokens": 0})
    with pytest.raises(InputRefusedError) as caught:
        submit(path, change={"chunk_num_requests": 2})
    assert "3 of 43 lines are bad; nothing was stored" in str(caught.value)
    report = caught.value.report
    assert (report.num_lines, report.num_invalid) == (43, 3)
    assert [error.line for error in report.errors] == [21, 42, 43]
    assert num_rows(sqlite_database) == {}


def test_all_errors_are_written_even_though_nothing_is_stored(
    submit: Submit, write: Any, tmp_path: Path
) -> None:
    errors = tmp_path / "bad.jsonl"
    with pytest.raises(InputRefusedError):
        submit(write(*[BAD] * 30), errors_path=str(errors))
    assert [json.loads(line)["line"] for line in errors.read_text().splitlines()] == list(range(1, 31))


def test_skip_runs_the_good_lines_and_keeps_the_bad_ones_as_failed(
    submit: Submit, sqlite_database: Database, write: Any, finish: Any
) -> None:
    path = write(GOOD, {**BAD, "custom_id": "b"}, b"{", GOOD, {**GOOD, "custom_id": "b"})
    submitted = submit(path, on_invalid=OnInvalid.SKIP)
    assert submitted.job.counts == Counts(pending=2, failed=3)
    assert submitted.report is not None
    assert submitted.report.num_invalid == 3
    finish(sqlite_database, submitted.job.id)
    job = queries.get_job(sqlite_database, submitted.job.id)
    assert (job.state, job.counts) == (JobState.COMPLETED, Counts(succeeded=2, failed=3))
    outcomes = list(iterate_outcomes(sqlite_database, job.id))
    assert [(outcome.custom_id, outcome.error_code) for outcome in outcomes] == [
        (None, None),
        ("b", "invalid_request"),
        (None, "invalid_json"),
        (None, None),
        (None, "duplicate_custom_id"),
    ]
    assert outcomes[1].error_message == 'line 2, prompt: the value is not of type "string"'
    assert str(outcomes[2].error_message).startswith("line 3: not JSON")
    assert outcomes[4].error_message == "line 5, custom_id: custom_id of line 5 stands in line 2 already"


def test_a_job_of_bad_lines_only_is_over_at_once(
    submit: Submit, sqlite_database: Database, write: Any
) -> None:
    job = submit(write(BAD, BAD, b"{"), on_invalid=OnInvalid.SKIP, change={"chunk_num_requests": 2}).job
    assert (job.state, job.counts) == (JobState.COMPLETED, Counts(failed=3))
    assert job.finished_at is not None
    assert [state for _, _, _, state in chunks_of(sqlite_database, job.id)] == ["done", "done"]


def test_strict_makes_an_unknown_field_a_bad_line(
    submit: Submit, sqlite_database: Database, write: Any
) -> None:
    path = write({**GOOD, "temprature": 1})
    with pytest.raises(InputRefusedError):
        submit(path, strict=True)
    assert num_rows(sqlite_database) == {}
    assert submit(path).created


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("on_invalid", list(OnInvalid))
def test_a_file_without_requests_is_refused(
    submit: Submit, sqlite_database: Database, tmp_path: Path, content: bytes, on_invalid: OnInvalid
) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(InputError, match="has no requests"):
        submit(tmp_path / "in.jsonl", on_invalid=on_invalid)
    assert num_rows(sqlite_database) == {}


def test_a_missing_file_leaves_nothing(submit: Submit, sqlite_database: Database, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        submit(tmp_path / "none.jsonl", once=True)
    assert num_rows(sqlite_database) == {}


# an end in the middle


@pytest.fixture
def interrupt_lines(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException, Callable[[], None]], None]:
    """Lets `InputFile.blocks` raise after ten lines, and call something just before."""
    blocks = InputFile.blocks
    monkeypatch.setattr(submitting, "_BATCH_REQUESTS", 2)

    def patch(error: BaseException, before: Callable[[], None]) -> None:
        def interrupted(source: InputFile, max_line_bytes: int) -> Iterator[list[RawLine]]:
            for line in chain.from_iterable(blocks(source, max_line_bytes)):
                if line[0] > 10:
                    before()
                    raise error
                yield [line]

        monkeypatch.setattr(InputFile, "blocks", interrupted)

    return patch


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), InputError("cut off"), MemoryError()], ids=["ctrl-c", "cut-off", "memory"]
)
def test_an_end_in_the_middle_leaves_nothing(
    submit: Submit, sqlite_database: Database, write: Any, interrupt_lines: Any, error: BaseException
) -> None:
    seen: list[dict[str, int]] = []
    interrupt_lines(error, lambda: seen.append(num_rows(sqlite_database)))
    with pytest.raises(type(error)):
        submit(write(*[GOOD] * 20), change={"chunk_num_requests": 2}, idempotency_key="k")
    assert seen[0]["requests"] > 0, "some were stored by then"
    assert num_rows(sqlite_database) == {}


def test_nobody_sees_a_job_that_is_still_being_submitted(
    submit: Submit, sqlite_database: Database, write: Any, interrupt_lines: Any
) -> None:
    def look() -> None:
        with sqlite_database.read() as tx:
            job_id = tx.execute(select(jobs.c.id)).scalar_one()
        assert queries.list_jobs(sqlite_database, 10) == []
        with pytest.raises(NotFoundError):
            queries.get_job(sqlite_database, job_id)

    interrupt_lines(KeyboardInterrupt(), look)
    with pytest.raises(KeyboardInterrupt):
        submit(write(*[GOOD] * 20), change={"chunk_num_requests": 2})


def test_the_error_that_ended_a_submit_is_the_one_to_see(
    submit: Submit, write: Any, interrupt_lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_away(*_: object) -> None:
        raise DatabaseUnavailableError("away")

    interrupt_lines(InputError("cut off"), lambda: None)
    monkeypatch.setattr(recovery, "discard_staged_job", be_away)
    with pytest.raises(InputError, match="cut off"):
        submit(write(*[GOOD] * 20), change={"chunk_num_requests": 2})


def test_a_submit_that_slept_past_its_lease_adds_nothing(
    submit: Submit,
    sqlite_database: Database,
    write: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submits, "SUBMIT_LEASE_S", -1.0)
    with pytest.raises(LeaseLostError, match="submit again"):
        submit(write(*[GOOD] * 5), change={"chunk_num_requests": 1})
    assert num_rows(sqlite_database) == {}


# keys


def test_a_second_submit_with_the_key_returns_the_first_job(
    submit: Submit, sqlite_database: Database, write: Any
) -> None:
    path = write(GOOD, GOOD)
    first = submit(path, idempotency_key="k")
    second = submit(path, idempotency_key="k")
    assert (first.created, second.created, second.is_same_input) == (True, False, True)
    assert second.job == first.job
    assert num_rows(sqlite_database)["jobs"] == 1
    assert submit(path, idempotency_key="l").created
    assert submit(path).created


def test_another_file_with_the_same_key_is_noticed(submit: Submit, write: Any) -> None:
    first = submit(write(GOOD), idempotency_key="k")
    second = submit(write(GOOD, GOOD, name="other.jsonl"), idempotency_key="k")
    assert (second.job.id, second.created, second.is_same_input) == (first.job.id, False, False)


def test_stdin_with_a_known_key_is_answered_without_reading_it(
    submit: Submit, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = submit(write(GOOD), idempotency_key="k")
    monkeypatch.setattr("sys.stdin", None)
    second = submit("-", idempotency_key="k")
    assert (second.job.id, second.created, second.is_same_input) == (first.job.id, False, None)


def test_once_returns_the_first_job_of_this_content(submit: Submit, write: Any, home: Path) -> None:
    first = submit(write(GOOD), once=True)
    again = submit(write(GOOD, name="copy.jsonl"), once=True)
    assert (first.created, again.created, again.job.id) == (True, False, first.job.id)
    assert submit(write(GOOD, GOOD), once=True).created, "other content is another job"
    small = find_card(home, "smollm2-135m-instruct")
    assert submit(write(GOOD), once=True, card=small).created, "and so is another card"


def test_once_is_once_a_name(submit: Submit, write: Any) -> None:
    path = write(GOOD)
    tonight = submit(path, once=True, name="nightly-2")
    assert tonight.created
    assert submit(path, once=True, name="nightly-2").job.id == tonight.job.id
    assert submit(path, once=True, name="nightly-3").created
    assert submit(path, once=True).created


def test_once_holds_for_stdin_too(
    submit: Submit, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    for _ in range(2):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt":"x"}')))
        answers.append(submit("-", once=True))
    assert [answer.created for answer in answers] == [True, False]
    assert answers[0].job.id == answers[1].job.id
    assert num_rows(sqlite_database) == {"jobs": 1, "chunks": 1, "requests": 1}


@pytest.mark.parametrize("is_same", [True, False])
def test_two_submits_at_once_with_one_key_make_one_job(
    submit: Submit,
    sqlite_database: Database,
    write: Any,
    monkeypatch: pytest.MonkeyPatch,
    is_same: bool,  # noqa: FBT001
) -> None:
    both_staged = threading.Barrier(2, timeout=30)
    begin = submits.begin

    def begin_together(*arguments: Any) -> None:
        begin(*arguments)
        both_staged.wait()

    monkeypatch.setattr(submits, "begin", begin_together)
    paths = [write(GOOD, name="a.jsonl"), write(GOOD if is_same else {"prompt": "y"}, name="b.jsonl")]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda path: submit(path, idempotency_key="k"), paths))
    assert sorted(answer.created for answer in answers) == [False, True]
    assert answers[0].job.id == answers[1].job.id
    (late,) = (answer for answer in answers if not answer.created)
    assert late.is_same_input == is_same
    assert num_rows(sqlite_database) == {"jobs": 1, "chunks": 1, "requests": 1}


def test_a_key_is_free_again_after_its_submit_was_refused(submit: Submit, write: Any) -> None:
    with pytest.raises(InputRefusedError):
        submit(write(BAD), idempotency_key="k")
    assert submit(write(GOOD), idempotency_key="k").created


# memory


def peak_bytes(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_lines(submit: Submit, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    with path.open("w") as file:
        for number in range(150_000):
            file.write(f'{{"custom_id":"request {number:08}","prompt":"{"x" * 200}"}}\n')
    # 16 MiB of bits and up to 16 of the latest custom ids, whatever the file
    assert peak_bytes(lambda: submit(path)) < 48 * 1024 * 1024


def test_memory_does_not_grow_with_the_length_of_lines(submit: Submit, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    with path.open("w") as file:
        for _ in range(100):
            file.write(f'{{"prompt":"x","meta":"{"x" * 1024 * 1024}"}}\n')
    assert peak_bytes(lambda: submit(path)) < 50 * 1024 * 1024
