"""What is read is true at every moment: counts add up, outcomes come in order, rates measure, lists are short."""

from functools import partial

import pytest
from database.rows import (
    CARD,
    LEASE_S,
    cancel,
    claim,
    commit,
    expire,
    failure,
    finish,
    finish_all,
    record,
    register,
    set_columns,
    silence,
    stage,
    submit,
    success,
)
from soundness import assert_job_is_sound

from db import leases, outcomes, queries, recovery
from db.database import Database
from db.errors import NotFoundError
from db.queries import Counts
from db.states import JobState
from db.tables import chunks, jobs, now_s


def _age(database: Database, job_id: str, age_s: float) -> str:
    set_columns(database, jobs, jobs.c.id == job_id, created_at=now_s() - age_s)
    return job_id


# --- jobs -----------------------------------------------------------------------------------------------------


def test_a_job_that_is_missing_is_not_found(database: Database) -> None:
    with pytest.raises(NotFoundError, match="promptmill list"):
        queries.get_job(database, "job_missing")


def test_the_total_is_the_sum_of_the_others_all_the_way_to_completed(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=7, chunk_size=3, bad=[1])
    counts = partial(_counts, database, job_id, 7)
    assert counts() == Counts(pending=6, failed=1)
    lease = claim(database)
    assert counts() == Counts(pending=4, running=2, failed=1)
    record(database, lease, [success(0)], is_last=False)
    assert counts() == Counts(pending=4, running=1, succeeded=1, failed=1)
    leases.release(database, lease)
    assert counts() == Counts(pending=5, succeeded=1, failed=1)
    lease = claim(database)
    record(database, lease, [failure(2)], is_last=True)
    assert counts() == Counts(pending=4, succeeded=1, failed=2)
    finish_all(database)
    assert counts() == Counts(succeeded=5, failed=2)
    job = queries.get_job(database, job_id)
    assert (job.prompt_tokens, job.completion_tokens) == (5 * 3, 5 * 5)
    assert_job_is_sound(database, job_id)


def test_the_total_is_the_sum_of_the_others_all_the_way_to_cancelled(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=7, chunk_size=3)
    counts = partial(_counts, database, job_id, 7)
    lease = claim(database)
    record(database, lease, [success(0)], is_last=False)
    cancel(database, job_id)
    assert queries.get_job(database, job_id).state is JobState.CANCELLING
    assert counts() == Counts(pending=4, running=2, succeeded=1)
    leases.release(database, lease)
    assert counts() == Counts(succeeded=1, cancelled=6)
    assert_job_is_sound(database, job_id)


def _counts(database: Database, job_id: str, total: int) -> Counts:
    counts = queries.get_job(database, job_id).counts
    assert counts.total == total
    return counts


def test_jobs_are_listed_newest_first(database: Database) -> None:
    for age_s, job_id in ((20, "old"), (30, "oldest"), (10, "new")):
        _age(database, submit(database, job_id, num_requests=age_s), age_s)
    stage(database, "staged")
    listed = queries.list_jobs(database, 10)
    assert [job.id for job in listed] == ["new", "old", "oldest"]
    assert [job.counts.total for job in listed] == [10, 20, 30]
    assert listed[0] == queries.get_job(database, "new")
    assert [job.id for job in queries.list_jobs(database, 2)] == ["new", "old"]


def test_jobs_are_listed_by_state(database: Database) -> None:
    register(database)
    submit(database, "completed", num_requests=2)
    finish_all(database)
    submit(database, "running", num_requests=2)
    claim(database)
    _age(database, submit(database, "cancelled"), 60)
    cancel(database, "cancelled")
    assert [job.id for job in queries.list_jobs(database, 10, [JobState.IN_PROGRESS])] == ["running"]
    over = queries.list_jobs(database, 10, [JobState.COMPLETED, JobState.CANCELLED])
    assert [job.id for job in over] == ["completed", "cancelled"]
    assert queries.list_jobs(database, 10, [JobState.QUEUED]) == []
    # asked for by name, what is staged is still nobody's business
    stage(database, "staged")
    assert queries.list_jobs(database, 10, [JobState.VALIDATING]) == []
    for job in over:
        assert_job_is_sound(database, job.id)


def test_an_empty_database_has_no_jobs(database: Database) -> None:
    assert queries.list_jobs(database, 10) == []
    assert queries.list_workers(database) == []
    assert queries.count_claimable(database, CARD, 10) == 0


def test_the_newest_unfinished_job_of_the_same_input_and_card_is_found(database: Database) -> None:
    register(database)
    find = partial(queries.find_unfinished_job, database, "i" * 64, "c" * 64)
    assert find() is None
    for age_s, job_id in ((10, "new"), (20, "old")):
        _age(database, submit(database, job_id), age_s)
    stage(database, "other_input")
    assert commit(database, "other_input", input_sha256="j" * 64)
    found = find()
    assert found is not None
    assert found.id == "new"
    cancel(database, "new")
    found = find()
    assert found is not None
    assert found.id == "old"
    assert queries.find_unfinished_job(database, "i" * 64, "d" * 64) is None
    finish_all(database)
    assert find() is None
    for job_id in ("new", "old", "other_input"):
        assert_job_is_sound(database, job_id)


def test_a_job_of_another_selection_is_another_one(database: Database) -> None:
    find = partial(queries.find_unfinished_job, database, "i" * 64, "c" * 64)
    for job_id, selection in (("a", '{"shard": "1/2"}'), ("b", '{"shard": "2/2"}')):
        submit(database, job_id, selection=selection)
        found = find(selection=selection)
        assert found is not None
        assert (found.id, found.selection) == (job_id, selection)
    assert find() is None


# --- rates ----------------------------------------------------------------------------------------------------


def test_a_job_has_no_rate_before_anything_is_measured(database: Database) -> None:
    register(database)
    job_id = submit(database)
    for _ in ("queued", "claimed"):
        job = queries.get_job(database, job_id)
        assert (job.requests_per_s, job.completion_tokens_per_s, job.eta_s) == (None, None, None)
        claim(database)


def test_the_rate_of_a_running_job_is_that_of_what_it_did_since_its_chunks_began(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=8, chunk_size=4)
    lease = claim(database)
    set_columns(database, chunks, chunks.c.id == lease.chunk_id, started_at=now_s() - 20)
    record(database, lease, [success(0), success(1)], is_last=False)
    job = queries.get_job(database, job_id)
    assert job.requests_per_s == pytest.approx(2 / 20, rel=0.3)
    assert job.completion_tokens_per_s == pytest.approx(10 / 20, rel=0.3)
    assert job.eta_s == pytest.approx(6 / (2 / 20), rel=0.3)


def test_the_rate_of_a_running_job_is_that_of_the_last_minute(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=9, chunk_size=3)
    for _ in range(2):
        finish(database, claim(database))
    first = (chunks.c.first_index == 0) & (chunks.c.job_id == job_id)
    set_columns(database, chunks, first, started_at=now_s() - 7_000, finished_at=now_s() - 3_600)
    second = (chunks.c.first_index == 3) & (chunks.c.job_id == job_id)
    set_columns(database, chunks, second, started_at=now_s() - 180)
    # of the second one's three minutes and three results, one falls into the last minute
    job = queries.get_job(database, job_id)
    assert job.requests_per_s == pytest.approx(1 / 60, rel=0.05)
    assert job.completion_tokens_per_s == pytest.approx(5 / 60, rel=0.05)
    assert job.eta_s == pytest.approx(3 / (1 / 60), rel=0.05)


def test_a_job_that_stands_still_has_no_rate(database: Database) -> None:
    register(database)
    job_id = submit(database)
    finish(database, claim(database))
    set_columns(database, chunks, chunks.c.state == "done", started_at=1.0, finished_at=2.0)
    job = queries.get_job(database, job_id)
    assert (job.requests_per_s, job.eta_s) == (None, None)


def test_the_rate_of_a_finished_job_is_that_of_its_whole_run(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=10, bad=[9])
    finish_all(database)
    finished_at = queries.get_job(database, job_id).finished_at
    assert finished_at is not None
    set_columns(database, jobs, jobs.c.id == job_id, started_at=finished_at - 100)
    job = queries.get_job(database, job_id)
    assert job.requests_per_s == pytest.approx(10 / 100)
    assert job.completion_tokens_per_s == pytest.approx(45 / 100)
    assert job.eta_s is None
    assert_job_is_sound(database, job_id)


# --- outcomes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_requests_a_page", [1, 2, 3, 4, 5, 100])
def test_outcomes_come_in_input_order_whatever_the_pages(
    outcome_database: Database, monkeypatch: pytest.MonkeyPatch, num_requests_a_page: int
) -> None:
    monkeypatch.setattr(outcomes, "_PAGE_REQUESTS", num_requests_a_page)
    found = assert_job_is_sound(outcome_database, "job_a")
    assert [outcome.index for outcome in found] == list(range(13))
    assert [outcome.status for outcome in found] == [
        *["failed", *["succeeded"] * 3],  # a bad line first
        *["succeeded"] * 4,
        *["succeeded", *["cancelled"] * 3],  # the chunk that ran when the job was cancelled
        "cancelled",
    ]
    assert [outcome.custom_id for outcome in found] == [None, *(f"id-{index}" for index in range(1, 13))]


@pytest.fixture
def outcome_database(shared_database: Database) -> Database:
    """A cancelled job of 13 requests in four chunks, with outcomes of every kind, made once."""
    if queries.list_jobs(shared_database, 1):
        return shared_database
    register(shared_database)
    submit(shared_database, num_requests=13, chunk_size=4, bad=[0])
    for _ in range(2):
        finish(shared_database, claim(shared_database))
    running = claim(shared_database)
    cancel(shared_database, "job_a")
    record(shared_database, running, [success(8)], is_last=False)
    leases.release(shared_database, running)
    return shared_database


def test_a_request_that_was_cancelled_says_so(database: Database) -> None:
    job_id = submit(database, num_requests=1)
    cancel(database, job_id)
    (outcome,) = assert_job_is_sound(database, job_id)
    assert (outcome.custom_id, outcome.result, outcome.error_code) == ("id-0", None, "cancelled")
    assert "before this request ran" in str(outcome.error_message)


def test_a_job_under_way_yields_what_is_finished_and_nothing_else(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=8, bad=[5])
    assert [outcome.index for outcome in outcomes.iterate_outcomes(database, job_id)] == [5]
    lease = claim(database)
    record(database, lease, [success(1)], is_last=False)
    finish(database, claim(database))
    assert [outcome.index for outcome in outcomes.iterate_outcomes(database, job_id)] == [1, 2, 3, 5]
    cancel(database, job_id)
    # a chunk runs, which may finish more
    assert [outcome.index for outcome in outcomes.iterate_outcomes(database, job_id)] == [1, 2, 3, 5]
    leases.release(database, lease)
    over = [(outcome.index, outcome.status) for outcome in outcomes.iterate_outcomes(database, job_id)]
    assert [index for index, _ in over] == list(range(8))
    assert [index for index, status in over if status == "cancelled"] == [0, 4, 6, 7]


def test_an_export_holds_up_nobody(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two pages no transaction is open: a cancel gets through, and the export goes on."""
    monkeypatch.setattr(outcomes, "_PAGE_REQUESTS", 1)
    register(database)
    job_id = submit(database, num_requests=6, chunk_size=6)
    lease = claim(database)
    record(database, lease, [success(0), success(1)], is_last=False)
    found = outcomes.iterate_outcomes(database, job_id)
    assert next(found).index == 0
    finish(database, lease)
    assert [outcome.index for outcome in found] == [1, 2, 3, 4, 5]
    assert_job_is_sound(database, job_id)


# --- what is left to do ---------------------------------------------------------------------------------------


def test_chunks_that_can_be_claimed_are_counted_up_to_a_limit(database: Database) -> None:
    register(database)
    submit(database, "mine", num_requests=6)
    submit(database, "other", card_name="huge")
    submit(database, "cancelled")
    cancel(database, "cancelled")
    stage(database, "staged")
    count = partial(queries.count_claimable, database, CARD)
    assert (count(100), count(2), count(0)) == (3, 2, 0)
    lease = claim(database)
    assert count(100) == 2
    expire(database, lease)
    recovery.run_once(database, LEASE_S, max_attempts=3)
    assert count(100) == 3
    finish_all(database)
    assert count(100) == 0
    assert_job_is_sound(database, "mine")


def test_workers_are_listed_with_the_age_of_their_heartbeat(database: Database) -> None:
    for worker_id, silent_s in (("w_old", 50.0), ("w_new", 0.0), ("w_gone", 9_000.0)):
        register(database, worker_id)
        silence(database, worker_id, silent_s)
    recovery.run_once(database, LEASE_S, max_attempts=3)
    alive = queries.list_workers(database)
    assert [worker.id for worker in alive] == ["w_new", "w_old"]
    assert alive[1].heartbeat_age_s == pytest.approx(50, abs=30)
    assert (alive[0].card_name, alive[0].engine, alive[0].host, alive[0].pid) == (CARD, "echo", "host", 1)
    everyone = queries.list_workers(database, alive_only=False)
    assert [(worker.id, worker.state) for worker in everyone][-1] == ("w_gone", "gone")


@pytest.fixture
def three_jobs(database: Database) -> Database:
    for job_id in ("job_abc1", "job_abc22", "job_x_y"):
        submit(database, job_id)
    return database


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("job_abc1", "job_abc1"),
        ("job_abc2", "job_abc22"),
        ("abc1", "job_abc1"),
        ("x", "job_x_y"),
        ("job_x_", "job_x_y"),
    ],
)
def test_a_job_is_meant_by_its_id_or_the_beginning_of_it(three_jobs: Database, said: str, meant: str) -> None:
    assert queries.find_job_id(three_jobs, said) == meant


def test_a_whole_id_is_meant_even_where_others_begin_with_it(three_jobs: Database) -> None:
    submit(three_jobs, "job_abc")
    assert queries.find_job_id(three_jobs, "job_abc") == "job_abc"
    assert queries.find_job_id(three_jobs, "abc") == "job_abc"


@pytest.mark.parametrize("said", ["job_abc", "abc", "job_"])
def test_a_beginning_of_several_names_them(three_jobs: Database, said: str) -> None:
    with pytest.raises(NotFoundError, match="beginning of several jobs: job_abc1, job_abc22"):
        queries.find_job_id(three_jobs, said)


def test_of_many_jobs_only_some_are_named(three_jobs: Database) -> None:
    for number in range(9):
        submit(three_jobs, f"job_a{number}")
    with pytest.raises(NotFoundError, match="several jobs: job_a0, job_a1, job_a2, job_a3, job_a4 and more;"):
        queries.find_job_id(three_jobs, "a")


@pytest.mark.parametrize(
    "said", ["job_abd", "%", "job\\_abc1", "_", "job_x%", "JOB_ABC1", "job_abc1 ", "", " "]
)
def test_what_no_id_begins_with_is_not_found(three_jobs: Database, said: str) -> None:
    with pytest.raises(NotFoundError, match="there is no job"):
        queries.find_job_id(three_jobs, said)


def test_the_last_job_is_the_newest_that_is_whole(database: Database) -> None:
    with pytest.raises(NotFoundError, match="no job yet"):
        queries.find_job_id(database, "last")
    for job_id in ("job_b", "job_a"):
        submit(database, job_id)
    stage(database, "job_staged")
    assert queries.find_job_id(database, "last") == "job_a"
    with pytest.raises(NotFoundError):
        queries.find_job_id(database, "job_staged")


def test_an_unfinished_job_of_another_name_is_not_the_one_that_is_named(database: Database) -> None:
    submit(database, "tonight")
    set_columns(database, jobs, jobs.c.id == "tonight", name="nightly-2")
    find = partial(queries.find_unfinished_job, database, "i" * 64, "c" * 64, None)
    for name, is_found in ((None, True), ("nightly-2", True), ("nightly-3", False)):
        assert (find(name) is not None) == is_found, name
