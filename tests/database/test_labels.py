"""Labels come with their job, find it again, and go with it."""

import pytest
from database.rows import cancel, expire_submit, set_columns, stage, submit
from sqlalchemy import text

from db import queries, recovery
from db.database import Database
from db.labels import LabelFilter
from db.states import JobState
from db.tables import job_labels, jobs
from jobs.retention import delete

_LABELS = {"team": "eval", "night": "2026-11-25", "note": "a = b, c%_'é"}


def _found(
    database: Database, *labels: LabelFilter, limit: int = 10, state: JobState | None = None
) -> list[str]:
    states = [] if state is None else [state]
    return [job.id for job in queries.list_jobs(database, limit, states, labels)]


def _submit_aged(database: Database, job_id: str, age_s: float, **labels: str) -> None:
    submit(database, job_id, labels=labels)
    for table, of_job in ((jobs, jobs.c.id == job_id), (job_labels, job_labels.c.job_id == job_id)):
        set_columns(database, table, of_job, created_at=1000.0 - age_s)


@pytest.fixture
def labelled(database: Database) -> Database:
    """Three jobs with labels, the newest first by their names, and one without."""
    _submit_aged(database, "job_c", 30, team="eval", night="1")
    _submit_aged(database, "job_a", 10, team="eval", night="2")
    _submit_aged(database, "job_b", 20, team="data", night="2")
    submit(database, "job_bare")
    return database


def test_a_job_shows_its_labels_by_key_wherever_it_is_read(database: Database) -> None:
    submit(database, labels=_LABELS)
    job = queries.get_job(database, "job_a")
    assert list(job.labels.items()) == sorted(_LABELS.items())
    assert (
        queries.list_jobs(database, 1) == queries.list_jobs(database, 1, (), [LabelFilter("note")]) == [job]
    )


def test_a_label_keeps_the_time_of_its_job(database: Database) -> None:
    """It is what the list by a label goes by."""
    submit(database, labels=_LABELS)
    with database.read() as tx:
        times = tx.execute(text("SELECT created_at FROM job_labels UNION ALL SELECT created_at FROM jobs"))
        assert len(set(times.scalars())) == 1


def test_jobs_are_listed_by_label_newest_first(labelled: Database) -> None:
    assert _found(labelled) == ["job_bare", "job_a", "job_b", "job_c"]
    assert _found(labelled, LabelFilter("team", "eval")) == ["job_a", "job_c"]
    assert _found(labelled, LabelFilter("team")) == ["job_a", "job_b", "job_c"]
    assert _found(labelled, LabelFilter("team"), limit=2) == ["job_a", "job_b"]
    assert _found(labelled, LabelFilter("team", "ev")) == _found(labelled, LabelFilter("Team")) == []


def test_all_of_several_labels_must_hold(labelled: Database) -> None:
    night, eval_, team = LabelFilter("night", "2"), LabelFilter("team", "eval"), LabelFilter("team")
    assert _found(labelled, night, eval_) == _found(labelled, eval_, night) == ["job_a"]
    assert _found(labelled, night, team) == ["job_a", "job_b"]
    assert _found(labelled, eval_, team, night) == ["job_a"]
    assert _found(labelled, eval_, LabelFilter("team", "data")) == []


def test_labels_and_states_go_together(labelled: Database) -> None:
    cancel(labelled, "job_a")
    assert _found(labelled, LabelFilter("team", "eval"), state=JobState.QUEUED) == ["job_c"]
    assert _found(labelled, LabelFilter("team", "eval"), state=JobState.CANCELLED) == ["job_a"]


def test_nobody_sees_the_labels_of_a_job_that_is_not_whole(database: Database) -> None:
    stage(database, labels=_LABELS)
    assert _found(database, LabelFilter("team")) == []


def test_labels_go_with_their_job(labelled: Database) -> None:
    stage(labelled, "dead", labels=_LABELS)
    expire_submit(labelled, "dead")
    recovery.run_once(labelled, 60.0, 2)
    cancel(labelled, "job_a")
    delete(labelled, "job_a")
    with labelled.read() as tx:
        left = tx.execute(text("SELECT DISTINCT job_id FROM job_labels ORDER BY job_id")).scalars().all()
    assert left == ["job_b", "job_c"]
    assert _found(labelled, LabelFilter("team", "eval")) == ["job_c"]
