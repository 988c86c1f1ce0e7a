"""What runs where, and what failed with which code: true at every moment, and counted no further than needed."""

import pytest
from database.rows import (
    cancel,
    claim,
    expire,
    failure,
    finish,
    finish_all,
    record,
    register,
    set_columns,
    stage,
    submit,
    success,
)

from db import activity, leases, queries, recovery
from db.activity import Activity, FailedRequest, WorkerShare, find_failures, read_activity
from db.database import Database
from db.errors import NotFoundError
from db.leases import NewResult
from db.one_request import find_index, read_request
from db.tables import jobs, now_s


def look(database: Database, job_id: str = "job_a") -> Activity:
    return read_activity(database, queries.get_job(database, job_id))


def fail(index: int, code: str) -> NewResult:
    return NewResult(index, error_code=code, error_message=f"{code} of {index}")


# --- what runs ------------------------------------------------------------------------------------------------


def test_a_job_that_waits_has_nothing_that_runs(database: Database) -> None:
    submit(database)
    assert look(database) == Activity(None, (), {})


def test_running_chunks_are_told_by_worker_the_busiest_first(database: Database) -> None:
    for worker_id in ("w1", "w2", "w3"):
        register(database, worker_id)
    submit(database, num_requests=8, chunk_size=2)
    submit(database, "job_b", num_requests=2)
    first = claim(database, "w1", "job_a")
    for _ in range(2):
        claim(database, "w2", "job_a")
    claim(database, "w3", "job_b")
    record(database, first, [success(0)], is_last=False)
    assert look(database).running == (WorkerShare("w2", "host", 2, 4), WorkerShare("w1", "host", 1, 1))
    job = queries.get_job(database, "job_a")
    assert sum(share.num_requests for share in look(database).running) == job.counts.running
    leases.release(database, first)
    assert [share.worker_id for share in look(database).running] == ["w2"]


def test_a_job_that_is_over_has_nothing_that_runs(database: Database) -> None:
    register(database)
    submit(database)
    finish_all(database)
    assert look(database).running == ()


def test_time_goes_by_from_the_first_claim_to_the_end(database: Database) -> None:
    register(database)
    submit(database, num_requests=4, chunk_size=2)
    finish(database, claim(database))
    set_columns(database, jobs, jobs.c.id == "job_a", started_at=now_s() - 60)
    assert look(database).elapsed_s == pytest.approx(60, abs=20)
    finish_all(database)
    job = queries.get_job(database, "job_a")
    assert look(database).elapsed_s == pytest.approx(job.elapsed_s)


# --- what failed ----------------------------------------------------------------------------------------------


@pytest.fixture
def failed(database: Database) -> str:
    """Seven of nine requests failed, with three codes; another job has failures of its own."""
    register(database)
    submit(database, num_requests=9, chunk_size=9, bad=[8])
    submit(database, "job_b", num_requests=2, bad=[1])
    lease = claim(database, job_id="job_a")
    batch = [fail(index, "engine_error") for index in (5, 0, 3, 2)]
    batch += [fail(index, "input_too_long") for index in (7, 1)]
    record(database, lease, [*batch, success(4), success(6)], is_last=True)
    return "job_a"


def test_failures_are_counted_by_code(database: Database, failed: str) -> None:
    assert look(database, failed).failures == {"engine_error": 4, "input_too_long": 2, "invalid_json": 1}
    assert look(database, "job_b").failures == {"invalid_json": 1}


def test_no_code_is_counted_for_ever(
    database: Database, failed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "_MOST_COUNTED", 2)
    assert look(database, failed).failures == {"engine_error": 3, "input_too_long": 2, "invalid_json": 1}
    assert [group.num for group in find_failures(database, failed, 0)] == [4, 2, 1], (
        "whoever asks for them gets all"
    )


def test_failures_come_in_groups_with_their_first_requests(database: Database, failed: str) -> None:
    groups = find_failures(database, failed, 3)
    assert [(group.code, group.num) for group in groups] == [
        ("engine_error", 4),
        ("input_too_long", 2),
        ("invalid_json", 1),
    ]
    assert groups[0].examples == (
        FailedRequest(0, "id-0", "engine_error of 0"),
        FailedRequest(2, "id-2", "engine_error of 2"),
        FailedRequest(3, "id-3", "engine_error of 3"),
    )
    assert groups[2].examples == (FailedRequest(8, None, "line 9: not JSON"),)


def test_a_job_without_failures_has_no_groups(database: Database) -> None:
    register(database)
    submit(database)
    finish_all(database)
    assert find_failures(database, "job_a", 3) == []
    assert look(database).failures == {}


# --- one request ----------------------------------------------------------------------------------------------


def test_a_request_is_read_in_each_of_its_states(database: Database) -> None:
    register(database)
    submit(database, num_requests=4, chunk_size=2, bad=[3])
    waiting = read_request(database, "job_a", 0)
    assert (waiting.status, waiting.attempt, waiting.started_at, waiting.host) == (
        "pending",
        None,
        None,
        None,
    )
    assert (waiting.custom_id, waiting.outcome) == ("id-0", None)
    assert waiting.body is not None
    lease = claim(database)
    running = read_request(database, "job_a", 0)
    assert (running.status, running.attempt, running.host) == ("running", 1, "host")
    assert running.started_at is not None
    assert read_request(database, "job_a", 2).status == "pending"
    record(database, lease, [success(0), failure(1)], is_last=True)
    done, failed_, bad = (read_request(database, "job_a", index) for index in (0, 1, 3))
    assert (done.status, done.attempt, done.host) == ("succeeded", 1, None)
    assert done.outcome is not None
    assert (done.outcome.result, done.outcome.position, done.outcome.body) == (
        '{"response": "yes"}',
        2,
        done.body,
    )
    assert failed_.outcome is not None
    assert (failed_.status, failed_.outcome.error_code) == ("failed", "engine_error")
    assert (bad.status, bad.body, bad.attempt, bad.started_at) == ("failed", None, 0, None)


def test_a_request_that_was_given_back_waits_again(database: Database) -> None:
    register(database)
    submit(database)
    expire(database, claim(database))
    recovery.run_once(database, 300.0, 3)
    found = read_request(database, "job_a", 0)
    assert (found.status, found.attempt, found.started_at) == ("pending", None, None)


def test_a_request_of_a_cancelled_job_never_ran(database: Database) -> None:
    submit(database)
    cancel(database, "job_a")
    found = read_request(database, "job_a", 1)
    assert found.status == "cancelled"
    assert found.outcome is not None
    assert (found.outcome.error_code, found.outcome.body) == ("cancelled", found.body)


def test_a_request_is_found_by_its_custom_id(database: Database) -> None:
    submit(database)
    submit(database, "job_b", num_requests=9)
    assert find_index(database, "job_a", "id-3") == 3
    with pytest.raises(NotFoundError, match="custom_id; its requests are numbered from 0 to 3"):
        find_index(database, "job_a", "id-8")


@pytest.mark.parametrize("index", [4, 2**62])
def test_an_index_that_is_not_there_is_not_found(database: Database, index: int) -> None:
    submit(database)
    with pytest.raises(
        NotFoundError, match=f"job_a has no request {index}; its requests are numbered from 0 to 3"
    ):
        read_request(database, "job_a", index)


def test_a_job_that_nobody_sees_has_no_requests(database: Database) -> None:
    stage(database)
    for read in (lambda: read_request(database, "job_a", 0), lambda: find_index(database, "job_a", "id-0")):
        with pytest.raises(NotFoundError, match="no job job_a"):
            read()
