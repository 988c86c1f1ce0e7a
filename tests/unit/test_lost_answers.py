"""A connection that breaks after the commit: the worker asks again, and nothing is run, counted or waited for twice."""

import itertools
from typing import Any

import pytest
from database.rows import result_rows
from echo_worker import work
from soundness import assert_job_is_sound

from db import leases
from db.database import Database
from db.errors import DatabaseUnavailableError
from jobs.cards import Card
from jobs.settings import Settings
from jobs.submit import SubmitOptions, submit


@pytest.mark.parametrize("name", ["claim", "load_requests", "record"])
def test_every_other_answer_is_lost(
    sqlite_database: Database,
    settings: Settings,
    card: Card,
    write: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    settings = settings.model_copy(update={"chunk_num_requests": 2})
    path = write(*({"prompt": f"say {n}"} for n in range(8)))
    job_id = submit(sqlite_database, settings, card, str(path), SubmitOptions()).job.id
    asked, real = itertools.count(), getattr(leases, name)

    def ask(*arguments: Any, **options: Any) -> Any:
        answer = real(*arguments, **options)
        if next(asked) % 2 == 0:
            raise DatabaseUnavailableError("the connection broke")
        return answer

    monkeypatch.setattr(leases, name, ask)
    work(sqlite_database, settings, card.name)
    assert next(asked) > 4, "there are four chunks"
    assert_job_is_sound(sqlite_database, job_id)
    assert {row["attempt"] for row in result_rows(sqlite_database, job_id)} == {1}
