"""A job is seen whole or not at all; a bad line that is kept is a result like any other; a key is used once."""

from functools import partial

import pytest
from database.rows import (
    CARD,
    LEASE_S,
    Pause,
    all_at_once,
    chunk_states,
    commit,
    finish_all,
    job_row,
    line,
    overlap,
    positions,
    register,
    result_rows,
    stage,
    submit,
)
from soundness import assert_job_is_sound

from db import leases, queries, submits
from db.database import Database
from db.errors import NotFoundError, WrongStateError
from db.queries import Counts
from db.states import ChunkState, InputFormat, JobState
from db.submits import NewChunk
from db.transitions import NewJob


def _is_seen(database: Database, job_id: str) -> bool:
    """By any question that can be asked."""
    seen = {
        job_id in {job.id for job in queries.list_jobs(database, 100)},
        job_id in {job.id for job in queries.list_jobs(database, 100, list(JobState))},
        queries.find_unfinished_job(database, "i" * 64, "c" * 64) is not None,
        queries.count_claimable(database, CARD, 100) > 0,
    }
    try:
        seen.add(queries.get_job(database, job_id).id == job_id)
    except NotFoundError:
        seen.add(False)
    assert len(seen) == 1, "seen by one and not by another"
    return seen.pop()


def test_a_job_is_seen_from_its_commit_on(database: Database) -> None:
    job_id = stage(database)
    assert not _is_seen(database, job_id)
    register(database)
    assert leases.claim(database, "w1", CARD, LEASE_S) is None
    assert commit(database, job_id)
    assert _is_seen(database, job_id)
    finish_all(database)
    assert_job_is_sound(database, job_id)


def test_a_job_says_what_it_was_submitted_with(database: Database) -> None:
    new = NewJob("job_a", CARD, "c" * 64, "name: tiny", "in.jsonl", "nightly", 7, sampling="{}")
    submits.begin(database, new)
    submits.add(database, "job_a", [line(0)], [NewChunk(0, 1, 0)])
    assert commit(database, "job_a", num_requests=1, key="monday", input_format=InputFormat.OPENAI)
    job = queries.get_job(database, "job_a")
    assert (job.name, job.priority, job.input_name, job.input_sha256) == ("nightly", 7, "in.jsonl", "i" * 64)
    assert (job.input_format, job.sampling) == (InputFormat.OPENAI, "{}")
    assert (job.card_name, job.card_sha256) == (CARD, "c" * 64)
    assert queries.get_card(database, "job_a") == "name: tiny"
    assert queries.find_job_by_key(database, "monday") == job
    assert queries.find_job_by_key(database, "tuesday") is None


def test_a_job_that_is_added_in_parts_is_whole(database: Database) -> None:
    job_id = stage(database, num_requests=4)
    submits.add(database, job_id, [line(4), line(5)], [])
    submits.add(database, job_id, [line(6)], [NewChunk(4, 3, 0)])
    assert commit(database, job_id, num_requests=7)
    register(database)
    finish_all(database)
    outcomes = assert_job_is_sound(database, job_id)
    assert [outcome.custom_id for outcome in outcomes] == [f"id-{index}" for index in range(7)]


def test_bad_lines_of_every_step_have_positions_and_results_come_after_them(database: Database) -> None:
    job_id = stage(database, num_requests=4, bad=[1, 3])
    submits.add(database, job_id, [line(4, is_bad=True), line(5)], [NewChunk(4, 2, 1)])
    assert commit(database, job_id, num_requests=6, num_failed=3)
    assert positions(database, job_id) == {1: 1, 3: 2, 4: 3}
    register(database)
    finish_all(database)
    assert positions(database, job_id) == {1: 1, 3: 2, 4: 3, 0: 4, 2: 5, 5: 6}
    assert_job_is_sound(database, job_id)


def test_a_step_that_fails_adds_none_of_its_lines(database: Database) -> None:
    job_id = stage(database, num_requests=2)
    with pytest.raises(Exception, match=r"(?i)unique"):
        submits.add(database, job_id, [line(2), line(3), line(0)], [NewChunk(2, 2, 0)])
    assert commit(database, job_id, num_requests=2)
    register(database)
    finish_all(database)
    assert_job_is_sound(database, job_id)


def test_a_job_is_committed_once(database: Database) -> None:
    job_id = submit(database)
    before = job_row(database, job_id)
    with pytest.raises(WrongStateError):
        commit(database, job_id, num_requests=99)
    assert job_row(database, job_id) == before


# --- keys -----------------------------------------------------------------------------------------------------


def test_a_key_that_is_taken_deletes_the_later_job(database: Database) -> None:
    stage(database, "first")
    stage(database, "second", num_requests=10, bad=[3])
    assert commit(database, "first", key="nightly")
    before = job_row(database, "first")
    assert not commit(database, "second", num_requests=10, key="nightly")
    with pytest.raises(NotFoundError):
        queries.get_job(database, "second")
    assert result_rows(database, "second") == []
    assert job_row(database, "first") == before
    found = queries.find_job_by_key(database, "nightly")
    assert found is not None
    assert found.id == "first"


def test_a_key_stays_taken_when_its_job_is_over(database: Database) -> None:
    register(database)
    stage(database, "first")
    assert commit(database, "first", key="nightly")
    finish_all(database)
    assert_job_is_sound(database, "first")
    stage(database, "second")
    assert not commit(database, "second", key="nightly")


def test_of_commits_with_one_key_that_overlap_one_succeeds(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(database, "first")
    stage(database, "second")
    created = overlap(
        database,
        Pause(monkeypatch, "enqueue_job"),
        partial(commit, database, "first", key="nightly"),
        partial(commit, database, "second", key="nightly"),
    )
    assert created is False
    assert [job.id for job in queries.list_jobs(database, 10)] == ["first"]


def test_of_many_commits_with_one_key_one_succeeds(database: Database) -> None:
    job_ids = [stage(database, f"job_{number}") for number in range(6)]
    created = all_at_once([partial(commit, database, job_id, key="nightly") for job_id in job_ids])
    assert created.count(True) == 1
    assert [job.id for job in queries.list_jobs(database, 10)] == [job_ids[created.index(True)]]


# --- bad lines ------------------------------------------------------------------------------------------------


def test_a_bad_line_is_a_failed_result_from_the_start(database: Database) -> None:
    job_id = submit(database, num_requests=6, bad=[0, 2, 3])
    assert queries.get_job(database, job_id).counts == Counts(pending=3, failed=3)
    # a chunk of bad lines alone is done before anybody claims it
    assert chunk_states(database, job_id) == [ChunkState.QUEUED, ChunkState.DONE, ChunkState.QUEUED]
    assert job_row(database, job_id)["state"] == JobState.QUEUED
    register(database)
    finish_all(database)
    outcomes = assert_job_is_sound(database, job_id)
    assert [outcome.error_code for outcome in outcomes] == [
        "invalid_json",
        None,
        "invalid_json",
        "invalid_json",
        None,
        None,
    ]
    assert outcomes[2].error_message == "line 3: not JSON"


def test_a_job_of_bad_lines_alone_is_over_at_once(database: Database) -> None:
    job_id = submit(database, bad=range(4))
    job = queries.get_job(database, job_id)
    assert job.state is JobState.COMPLETED
    assert job.counts == Counts(failed=4)
    assert (job.started_at, job.requests_per_s, job.eta_s) == (None, None, None)
    assert_job_is_sound(database, job_id)
