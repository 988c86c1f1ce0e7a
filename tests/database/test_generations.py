"""Of requests with one content key, one is generated: whoever comes at the same time, dies or fails in between."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
from database.rows import (
    Call,
    all_at_once,
    claim,
    expire,
    failure,
    finish,
    job_row,
    num_rows,
    pass_deadline,
    record,
    register,
    submit,
    success,
    wait_blocked,
)
from soundness import assert_job_is_sound
from sqlalchemy import func, select

from db import generations, leases, recovery, transitions
from db.database import Database
from db.errors import LeaseLostError
from db.generations import Claims
from db.leases import NewResult
from db.outcomes import iterate_outcomes
from db.tables import generations as notes
from db.transitions import Lease

_NUM_THREADS = 8


@pytest.fixture
def started(database: Database) -> Database:
    """A job of four chunks, of two requests each, and a worker."""
    register(database)
    submit(database, num_requests=8)
    return database


def _wants(database: Database, lease: Lease, *keys: str, is_reusing: bool = False) -> Claims:
    """Each key from the chunk's first index on."""
    wanted = {key: lease.first_index + number for number, key in enumerate(keys)}
    return generations.claim(database, lease, wanted, is_reusing=is_reusing)


def _answered(index: int, key: str) -> NewResult:
    return replace(success(index), content_key=key)


def _is_free(database: Database, job_id: str, key: str) -> bool:
    """Whether nobody generates it, and nobody has."""
    found = generations.look(database, job_id, [key])
    return [(note.result, note.has_failed) for note in found] == [(None, False)]


def test_the_first_chunk_generates_and_the_next_waits_for_its_result(started: Database) -> None:
    first, second = claim(started), claim(started)
    assert _wants(started, first, "k", "l") == Claims(frozenset({"k", "l"}), frozenset(), {})
    assert _wants(started, second, "k", "m") == Claims(frozenset({"m"}), frozenset(), {})
    assert generations.look(started, "job_a", ["k", "l", "m"]) == []
    record(started, first, [_answered(0, "k")], is_last=False)
    (note,) = generations.look(started, "job_a", ["k", "l", "m"])
    assert note.result == replace(_answered(0, "k"), reused_from="job_a:0")
    third = _wants(started, claim(started), "k")
    assert third == Claims(frozenset(), frozenset(), {"k": note.result})


def test_a_claim_whose_answer_was_lost_may_be_made_again(started: Database) -> None:
    lease = claim(started)
    assert _wants(started, lease, "k", "l") == _wants(started, lease, "k", "l")


def test_a_copy_names_the_one_that_was_generated(started: Database) -> None:
    first, second = claim(started), claim(started)
    _wants(started, first, "k")
    found = replace(_answered(0, "k"), reused_from="job_z:7")
    record(started, first, [found], is_last=False)
    assert _wants(started, second, "k").results == {"k": found}


def test_a_failure_is_never_taken_from_another(started: Database) -> None:
    first, second, third = claim(started), claim(started), claim(started)
    _wants(started, first, "k")
    record(started, first, [replace(failure(0), content_key="k")], is_last=False)
    assert _wants(started, second, "k") == Claims(frozenset({"k"}), frozenset({"k"}), {})
    assert _wants(started, third, "k") == Claims(frozenset(), frozenset(), {}), "the second one tries now"


@pytest.mark.parametrize("end", ["release", "death"])
def test_what_nobody_generates_any_more_is_taken_over_by_one(started: Database, end: str) -> None:
    first, second, third = claim(started), claim(started), claim(started)
    _wants(started, first, "k")
    for lease in (second, third):
        assert _wants(started, lease, "k").mine == frozenset()
    if end == "release":
        leases.release(started, first)
    else:
        expire(started, first)
        assert recovery.run_once(started, 300.0, 9).num_requeued == 1
    (note,) = generations.look(started, "job_a", ["k"])
    assert (note.index, note.result, note.has_failed) == (0, None, False)
    assert generations.take_over(started, second, [(note, 2)]) == {"k"}
    assert generations.take_over(started, third, [(note, 4)]) == frozenset()
    again = claim(started, job_id="job_a")
    assert again.first_index == 0
    assert _wants(started, again, "k").mine == frozenset(), "the first one waits for the second now"
    record(started, second, [_answered(2, "k")], is_last=False)
    assert _wants(started, again, "k").results["k"].reused_from == "job_a:2"


def test_a_chunk_that_comes_back_generates_what_was_its_own(started: Database) -> None:
    first = claim(started)
    _wants(started, first, "k", "l")
    record(started, first, [_answered(0, "k")], is_last=False)
    leases.release(started, first)
    again = claim(started)
    assert again.first_index == 0
    assert generations.claim(started, again, {"l": 1}, is_reusing=False).mine == {"l"}
    assert generations.look(started, "job_a", ["l"]) == [], "it is generated, as far as others are concerned"


def test_a_result_of_other_weights_is_none(started: Database) -> None:
    """The chunk's first worker died, and its next one has other weights, and so other keys for the same requests."""
    first, second = claim(started), claim(started)
    _wants(started, first, "old")
    leases.release(started, first)
    again = claim(started)
    _wants(started, again, "new")
    record(started, again, [_answered(0, "new")], is_last=False)
    assert _is_free(started, "job_a", "old")
    assert _wants(started, second, "old") == Claims(frozenset({"old"}), frozenset(), {})


def test_whoever_lost_its_lease_notes_nothing(started: Database) -> None:
    """Nobody would delete the notes of a job that is gone."""
    gone, other, lease = claim(started), claim(started), claim(started)
    _wants(started, other, "k")
    leases.release(started, other)
    (note,) = generations.look(started, "job_a", ["k"])
    leases.release(started, gone)
    with pytest.raises(LeaseLostError):
        generations.take_over(started, gone, [(note, 2)])
    with pytest.raises(LeaseLostError):
        _wants(started, gone, "l")
    assert _wants(started, lease, "k", "l").mine == {"k", "l"}


def test_claims_at_the_same_time_share_the_keys_out(database: Database) -> None:
    """In orders of their own, which must not make them wait for each other in a ring."""
    register(database)
    submit(database, num_requests=2 * _NUM_THREADS)
    held = [claim(database) for _ in range(_NUM_THREADS)]
    keys = [f"k{number}" for number in range(40)]
    orders: list[Sequence[str]] = [keys, keys[::-1], keys[20:] + keys[:20], keys[::2] + keys[1::2]]
    found = all_at_once(
        [partial(_wants, database, lease, *orders[number % 4]) for number, lease in enumerate(held)]
    )
    mine = [key for claims in found for key in claims.mine]
    assert sorted(mine) == sorted(keys)
    assert all(not claims.results and not claims.failed for claims in found)


def test_orphans_are_shared_out_at_the_same_time(database: Database) -> None:
    register(database)
    submit(database, num_requests=2 * _NUM_THREADS + 2)
    keys = [f"k{number}" for number in range(40)]
    dead = claim(database)
    generations.claim(database, dead, dict.fromkeys(keys, 0), is_reusing=False)
    held = [claim(database) for _ in range(_NUM_THREADS)]
    leases.release(database, dead)
    seen = generations.look(database, "job_a", keys)
    taken = all_at_once(
        [
            partial(generations.take_over, database, lease, [(note, lease.first_index) for note in seen])
            for lease in held
        ]
    )
    assert sorted(key for one in taken for key in one) == sorted(keys)


def test_a_claim_waits_for_one_that_is_not_committed(postgres_database: Database) -> None:
    database = postgres_database
    register(database)
    submit(database)
    first, second = claim(database), claim(database)
    with database.write() as tx:
        generations._insert(tx, first, {"k": 0})
        call = Call(partial(_wants, database, second, "k"))
        wait_blocked(database)
    assert call.result() == Claims(frozenset(), frozenset(), {})


# across jobs


def _done(database: Database, job_id: str, *keys: str) -> None:
    """A job whose requests, one for each key, succeeded."""
    submit(database, job_id, num_requests=len(keys), chunk_size=len(keys))
    lease = claim(database, job_id=job_id)
    _wants(database, lease, *keys)
    record(database, lease, [_answered(index, key) for index, key in enumerate(keys)], is_last=True)


def test_another_job_s_results_are_for_those_that_ask_for_them(database: Database) -> None:
    register(database)
    _done(database, "job_a", "k", "l")
    submit(database, "job_b", num_requests=4)
    asking, other = claim(database), claim(database)
    assert _wants(database, other, "k").mine == {"k"}
    found = _wants(database, asking, "k", "m", is_reusing=True)
    assert found.mine == {"m"}
    assert found.results == {"k": replace(_answered(0, "k"), reused_from="job_a:0")}


def test_a_job_that_took_results_hands_them_on_when_the_first_is_deleted(database: Database) -> None:
    register(database)
    _done(database, "job_a", "k", "l")
    submit(database, "job_b", num_requests=2)
    lease = claim(database)
    (found,) = _wants(database, lease, "k", is_reusing=True).results.values()
    record(database, lease, [found], is_last=False)
    with database.write() as tx:
        transitions.delete_job(tx, "job_a")
    submit(database, "job_c", num_requests=2)
    last = claim(database, job_id="job_c")
    assert _wants(database, last, "k", "l", is_reusing=True) == Claims(
        frozenset({"l"}), frozenset(), {"k": found}
    ), "nothing of a job that is being deleted"
    assert found.reused_from == "job_a:0"


def test_of_many_jobs_one_is_asked_for_each_key(database: Database) -> None:
    register(database)
    for number in range(5):
        _done(database, f"job_{number}", "k", "l")
    submit(database, "job_z", num_requests=2)
    lease = claim(database)
    with database.write() as tx:
        generations._insert(tx, lease, {"k": 0, "l": 1})
        found = generations._anywhere(tx, "job_z", ["k", "l"])
    assert {key: one.reused_from for key, one in found.items()} == {"k": "job_0:0", "l": "job_0:1"}


def test_what_another_job_fails_at_or_still_runs_is_no_result(database: Database) -> None:
    register(database)
    submit(database, "job_a", num_requests=2)
    running = claim(database)
    _wants(database, running, "k", "l")
    record(database, running, [replace(failure(0), content_key="k")], is_last=False)
    submit(database, "job_b", num_requests=2)
    assert _wants(database, claim(database), "k", "l", is_reusing=True).mine == {"k", "l"}


# sums, and the end


def test_sums_tell_what_was_reused_and_count_no_tokens_for_it(started: Database) -> None:
    lease = claim(started)
    copy = replace(_answered(1, "k"), reused_from="job_a:0")
    record(started, lease, [_answered(0, "k"), copy], is_last=True)
    row = job_row(started, "job_a")
    assert (row["num_succeeded"], row["num_reused"]) == (2, 1)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (3, 5)
    found = list(iterate_outcomes(started, "job_a"))
    assert [one.reused_from for one in found] == [None, "job_a:0"]
    assert [one.completion_tokens for one in found] == [5, 5], "a line says what it would have cost"
    while started_lease := leases.claim(started, "w1", "tiny", 300.0):
        finish(started, started_lease)
    assert_job_is_sound(started, "job_a")


def test_a_split_shares_out_what_was_reused_too(database: Database) -> None:
    register(database)
    submit(database, num_requests=16, chunk_size=16)
    lease = claim(database)
    record(
        database,
        lease,
        [replace(_answered(index, "k"), reused_from="job_a:9") for index in (0, 1, 2)],
        is_last=False,
    )
    expire(database, lease)
    assert recovery.run_once(database, 300.0, 1).num_split == 1
    while part := leases.claim(database, "w1", "tiny", 300.0):
        finish(database, part)
    assert job_row(database, "job_a")["num_reused"] == 3
    assert_job_is_sound(database, "job_a")


def test_a_deleted_job_leaves_no_notes(started: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """In steps, and with notes for requests that never got a result."""
    monkeypatch.setattr(recovery, "_ERASE_ROWS", 3)
    for number in range(4):
        lease = claim(started)
        _wants(started, lease, f"k{number}", f"l{number}")
        record(started, lease, [_answered(lease.first_index, f"k{number}")], is_last=False)
    pass_deadline(started, "job_a")
    assert recovery.run_once(started, 300.0, 9).num_jobs_expired == 1
    with started.read() as tx:
        assert tx.execute(select(func.count()).select_from(notes)).scalar_one() == 8
    with started.write() as tx:
        transitions.delete_job(tx, "job_a")
    assert recovery.erase_job(started, "job_a")
    assert num_rows(started, "job_a") == 0
