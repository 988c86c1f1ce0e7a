"""A rerun is stored like a submit, on both databases: whole or not at all, in pages, with the first job's indexes."""

import json
from pathlib import Path

import pytest
from database.rows import Call, Pause, expire_submit, register
from soundness import assert_job_is_sound
from sqlalchemy import func, select

from db import leases, outcomes, queries, recovery, submits, transitions
from db.database import Database
from db.errors import LeaseLostError, NotFoundError
from db.leases import NewResult, Record
from db.states import ResultStatus
from db.tables import chunks, jobs, requests, results
from jobs import merged, retention
from jobs import rerun as reruns
from jobs import submit as submitting
from jobs.cards import find_card
from jobs.rerun import RerunOptions, rerun
from jobs.settings import Settings
from jobs.submit import SubmitOptions
from jobs.verify import verify

_NUM = 50


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, engine="echo", chunk_num_requests=4)


@pytest.fixture
def parent_id(database: Database, settings: Settings, tmp_path: Path) -> str:
    """Completed: each third request failed."""
    path = tmp_path / "in.jsonl"
    lines = [json.dumps({"prompt": f"say {n}", "custom_id": f"id-{n}"}) for n in range(_NUM)]
    path.write_text("\n".join(lines))
    card = find_card(tmp_path, "smollm2-135m-instruct")
    register(database)
    job = submitting.submit(database, settings, card, str(path), SubmitOptions()).job
    _finish(database, job.id, 3)
    return job.id


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "_PAGE_REQUESTS", 7)
    monkeypatch.setattr(reruns, "_BLOCK_REQUESTS", 3)
    monkeypatch.setattr(submitting, "_BATCH_REQUESTS", 5)


def _finish(database: Database, job_id: str, failing: int) -> None:
    """Each so many fail."""
    card_name = queries.get_job(database, job_id).card_name
    while (lease := leases.claim(database, "w1", card_name, 300.0, job_id)) is not None:
        batch = [
            NewResult(one.index, error_code="engine_error", error_message="it broke")
            if one.index % failing == 0
            else NewResult(one.index, f'{{"response": "{job_id}"}}', "stop", 2, 2)
            for one in leases.load_requests(database, lease)
        ]
        leases.record(database, [Record(lease, batch, is_last=True)])


def _num_staged(database: Database) -> list[int]:
    with database.read() as tx:
        return [
            tx.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (jobs, requests, chunks, results)
        ]


@pytest.mark.usefixtures("small_pages")
def test_a_family_of_three_is_merged_page_by_page(
    database: Database, settings: Settings, parent_id: str
) -> None:
    first = rerun(database, settings, parent_id, RerunOptions()).job
    assert first.counts.total == 17
    _finish(database, first.id, 2)
    second = rerun(database, settings, first.id, RerunOptions()).job
    assert second.counts.total == 9
    _finish(database, second.id, 100)
    roots = [one.root_index for one in outcomes.iterate_outcomes(database, second.id, with_bodies=True)]
    assert roots == list(range(0, _NUM, 6))
    parent = queries.get_job(database, parent_id)
    family = queries.list_descendants(database, parent)
    assert [one.id for one in family] == [first.id, second.id]
    found = list(merged.merged_outcomes(database, parent, family))
    assert [one.custom_id for one in found] == [f"id-{n}" for n in range(_NUM)]
    sources = [one.job_id for one in found]
    assert sources == [parent_id if n % 3 else first.id if n % 6 else second.id for n in range(_NUM)]
    assert [one.index for one in found if one.status is ResultStatus.FAILED] == [0]
    for job_id in (parent_id, first.id, second.id):
        assert_job_is_sound(database, job_id)
        verify(database, job_id)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("num_batches", range(4))
def test_an_error_in_the_middle_leaves_nothing(
    database: Database,
    settings: Settings,
    parent_id: str,
    monkeypatch: pytest.MonkeyPatch,
    num_batches: int,
) -> None:
    before = _num_staged(database)
    real, calls = submits.add, []

    def add(*arguments: object, **keywords: object) -> None:
        real(*arguments, **keywords)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) > num_batches:
            raise KeyboardInterrupt

    monkeypatch.setattr(submits, "add", add)
    with pytest.raises(KeyboardInterrupt):
        rerun(database, settings, parent_id, RerunOptions())
    assert _num_staged(database) == before


@pytest.mark.usefixtures("small_pages")
def test_nobody_sees_a_rerun_before_it_is_whole(
    database: Database, settings: Settings, parent_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = Pause(monkeypatch, "stage_job")
    if database.is_sqlite:
        pause.end()  # whoever pauses there holds the only write lock
    call = Call(lambda: rerun(database, settings, parent_id, RerunOptions()))
    if not database.is_sqlite:
        pause.wait_reached()
        assert [job.id for job in queries.list_jobs(database, 9)] == [parent_id]
        pause.end()
    made = call.result().job
    assert [job.id for job in queries.list_jobs(database, 9)] == [made.id, parent_id]


def test_a_rerun_that_was_taken_for_dead_adds_nothing(
    database: Database, settings: Settings, parent_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after SIGKILL: what it staged is cleared away, and neither parent nor anybody else is touched."""
    before = _num_staged(database)
    real = submits.add

    def add(tx: Database, job_id: str, *arguments: object, **keywords: object) -> None:
        real(tx, job_id, *arguments, **keywords)  # type: ignore[arg-type]
        expire_submit(database, job_id)
        assert recovery.run_once(database, 60.0, 3) == recovery.Recovery(num_jobs_erased=1)

    monkeypatch.setattr(submits, "add", add)
    with pytest.raises((LeaseLostError, NotFoundError)):
        rerun(database, settings, parent_id, RerunOptions())
    assert _num_staged(database) == before
    assert_job_is_sound(database, parent_id)


def test_a_job_outlives_its_parent(database: Database, settings: Settings, parent_id: str) -> None:
    job = rerun(database, settings, parent_id, RerunOptions()).job
    retention.delete(database, parent_id)
    _finish(database, job.id, 100)
    assert_job_is_sound(database, job.id)
    job = queries.get_job(database, job.id)
    assert job.parent_id == parent_id
    again = rerun(database, settings, job.id, RerunOptions()).job
    assert [one.id for one in queries.list_descendants(database, job)] == [again.id]
    retention.delete(database, job.id)
    with database.write() as tx:
        transitions.cancel_job(tx, again.id)
