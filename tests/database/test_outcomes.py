"""Outcomes in the order of finishing: each position once, whatever the pages, and those that never ran at the end."""

import pytest
from database.rows import (
    PROMPT,
    cancel,
    claim,
    failure,
    pass_deadline,
    record,
    register,
    set_columns,
    submit,
    success,
)
from soundness import assert_job_is_sound

from db import leases, outcomes, recovery
from db.database import Database
from db.errors import NotFoundError
from db.outcomes import (
    Outcome,
    find_outcomes,
    has_custom_ids,
    iterate_bodies,
    iterate_finished,
    iterate_outcomes,
    read_extent,
)
from db.states import JobState
from db.tables import requests


def _some_finished(database: Database) -> str:
    """A job of ten requests, one bad; results for 3, 2 and 7 in this order."""
    register(database)
    job_id = submit(database, num_requests=10, bad=[5])
    first, second, third, fourth = (claim(database) for _ in range(4))
    record(database, second, [success(3), failure(2)], is_last=True)
    record(database, fourth, [success(7)], is_last=False)
    for lease in (first, third, fourth):
        leases.release(database, lease)
    return job_id


def _positions(database: Database, job_id: str, after: int = 0) -> list[tuple[int | None, int, str]]:
    found = iterate_finished(database, read_extent(database, job_id), after)
    return [(one.position, one.index, one.status) for one in found]


_FINISHED = [(1, 5, "failed"), (2, 3, "succeeded"), (3, 2, "failed"), (4, 7, "succeeded")]


@pytest.mark.parametrize("page", [1, 2, 3, 100])
def test_of_a_job_that_runs_there_is_what_is_finished(
    database: Database, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(outcomes, "_PAGE_REQUESTS", page)
    job_id = _some_finished(database)
    for after in range(6):
        assert _positions(database, job_id, after) == _FINISHED[after:]


@pytest.mark.parametrize("page", [1, 3, 100])
@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.EXPIRED])
def test_what_never_ran_comes_after_all_results_in_input_order(
    database: Database, monkeypatch: pytest.MonkeyPatch, state: JobState, page: int
) -> None:
    monkeypatch.setattr(outcomes, "_PAGE_REQUESTS", page)
    job_id = _some_finished(database)
    if state is JobState.CANCELLED:
        cancel(database, job_id)
    else:
        pass_deadline(database, job_id)
        recovery.run_once(database, 60.0, 3)
    never_ran = [(5 + n, index, state.value) for n, index in enumerate((0, 1, 4, 6, 8, 9))]
    for after in range(12):
        assert _positions(database, job_id, after) == [*_FINISHED, *never_ran][after:]
    assert_job_is_sound(database, job_id)


def test_both_orders_and_both_kinds_of_reading_tell_the_same(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "_PAGE_REQUESTS", 3)
    job_id = _some_finished(database)
    cancel(database, job_id)

    def key(outcome: Outcome) -> int:
        return outcome.index

    whole = list(iterate_outcomes(database, job_id, with_bodies=True))
    finished = list(iterate_finished(database, read_extent(database, job_id), with_bodies=True))
    assert sorted(finished, key=key) == whole
    assert [one.body is None for one in whole] == [one.index == 5 for one in whole]
    assert {PROMPT in (one.body or PROMPT) for one in whole} == {True}
    assert [one.finished_at is None for one in whole] == [one.status == "cancelled" for one in whole]
    for one in whole:
        one.position = one.finished_at = one.body = None
    assert list(iterate_outcomes(database, job_id)) == whole


def test_bodies_come_without_those_of_bad_lines(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "_PAGE_REQUESTS", 2)
    job_id = submit(database, num_requests=5, bad=[0, 3])
    assert [PROMPT in body for body in iterate_bodies(database, job_id)] == [True] * 3


@pytest.mark.parametrize("is_over", [False, True])
def test_outcomes_are_found_by_custom_ids(database: Database, is_over: bool) -> None:  # noqa: FBT001  pytest's
    job_id = _some_finished(database)
    submit(database, "job_other", num_requests=10)
    if is_over:
        cancel(database, job_id)
    asked = ["id-7", "id-0", "id-2", "id-5", "id-99", "' OR 1=1"]
    found = find_outcomes(database, read_extent(database, job_id), asked)
    whole = {one.custom_id: one for one in iterate_outcomes(database, job_id, with_bodies=True)}
    # 5 is a bad line without one; 0 never ran
    assert set(found) == ({"id-7", "id-0", "id-2"} if is_over else {"id-7", "id-2"})
    for custom_id, outcome in found.items():
        expected = whole[custom_id]
        if custom_id == "id-0":
            expected.position = None
        assert outcome == expected
    assert find_outcomes(database, read_extent(database, "job_other"), asked) == {}


def test_a_job_has_custom_ids_when_all_its_good_requests_do(database: Database) -> None:
    job_id = submit(database, num_requests=5, bad=[0, 3])
    submit(database, "job_other", num_requests=2)
    assert has_custom_ids(database, job_id)
    set_columns(database, requests, (requests.c.job_id == job_id) & (requests.c.index == 4), custom_id=None)
    assert not has_custom_ids(database, job_id)
    assert has_custom_ids(database, "job_other")


def test_a_job_that_nobody_sees_has_no_extent(database: Database) -> None:
    with pytest.raises(NotFoundError):
        read_extent(database, "missing")
    with pytest.raises(NotFoundError):
        list(iterate_bodies(database, "missing"))
    assert list(iterate_outcomes(database, "missing")) == []
