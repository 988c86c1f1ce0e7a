"""`results --follow`: every outcome once, in the order of finishing, across pauses, outages and ends of all kinds."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from db import outcomes, queries
from db.database import Database
from db.errors import DatabaseUnavailableError, NotFoundError, OutputError, SettingsError
from db.states import ResultStatus
from jobs import retention
from jobs.control import cancel
from jobs.export import ExportOptions, Order
from jobs.follow import Follower
from jobs.forms import Form


@pytest.fixture
def follower(sqlite_database: Database, tmp_path: Path) -> Callable[..., Follower]:
    """Follows a job into out.jsonl without sleeping for long."""

    def make(job_id: str, path: Path | None = None, **options: Any) -> Follower:
        job = queries.get_job(sqlite_database, job_id)
        chosen = ExportOptions(**{"order": Order.FINISHED, **options})
        return Follower(sqlite_database, job, str(path or tmp_path / "out.jsonl"), chosen, poll_s=0)

    return make


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """What happens at each pause of a follower, one after the other; a list that counts them."""

    def plan(*steps: Callable[[], object]) -> list[int]:
        paused: list[int] = []

        def sleep(_: float) -> None:
            paused.append(1)
            steps[len(paused) - 1]()

        monkeypatch.setattr("jobs.follow.time.sleep", sleep)
        return paused

    return plan


def _read(path: Path) -> list[tuple[int, int, str]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["position"], line["index"], line["status"]) for line in lines]


def _seen(path: Path) -> list[int]:
    return [index for _, index, _ in _read(path)]


def test_results_are_there_as_soon_as_they_finish_until_the_job_is_over(
    store: Any, finish: Any, sqlite_database: Database, follower: Any, between: Any, tmp_path: Path
) -> None:
    job_id = store(*[{"prompt": "x"}] * 6, chunk_size=2)
    seen: list[list[int]] = []

    def step() -> None:
        seen.append(_seen(tmp_path / "out.jsonl"))
        finish(sqlite_database, job_id, max_chunks=1)

    between(step, step, step)
    followed = follower(job_id)
    assert followed.run() == 6
    assert seen == [[], [0, 1], [0, 1, 2, 3]]
    assert _read(tmp_path / "out.jsonl") == [(n + 1, n, "succeeded") for n in range(6)]
    assert followed.position == 6
    assert (tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o600


def test_who_was_interrupted_goes_on_where_they_stood(
    store: Any, finish: Any, sqlite_database: Database, follower: Any, between: Any, tmp_path: Path
) -> None:
    job_id = store({"prompt": "x"}, {"prompt": 5}, *[{"prompt": "x"}] * 3, chunk_size=2)
    finish(sqlite_database, job_id, max_chunks=1)

    def interrupt() -> None:
        raise KeyboardInterrupt

    between(interrupt, lambda: finish(sqlite_database, job_id))
    first = follower(job_id)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert (first.position, _seen(tmp_path / "out.jsonl")) == (2, [1, 0])
    second = follower(job_id, after=first.position)
    assert second.run() == 3
    assert _read(tmp_path / "out.jsonl") == [
        *[(1, 1, "failed"), (2, 0, "succeeded")],
        *[(n + 1, n, "succeeded") for n in range(2, 5)],
    ]
    assert follower(job_id, after=5).run() == 0, "there is nothing after the end"


def test_of_a_job_that_is_cancelled_the_rest_comes_at_the_end(
    store: Any, finish: Any, sqlite_database: Database, follower: Any, between: Any, tmp_path: Path
) -> None:
    job_id = store(*[{"prompt": "x"}] * 4, chunk_size=1)
    between(lambda: finish(sqlite_database, job_id, max_chunks=1), lambda: cancel(sqlite_database, job_id))
    only = frozenset({ResultStatus.CANCELLED})
    followed = follower(job_id, only=only)
    assert followed.run() == 3
    assert _read(tmp_path / "out.jsonl") == [(n + 1, n, "cancelled") for n in range(1, 4)]
    assert followed.position == 4


def test_a_database_that_is_away_is_waited_for(
    store: Any,
    finish: Any,
    sqlite_database: Database,
    follower: Any,
    between: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = store(*[{"prompt": "x"}] * 4)
    finish(sqlite_database, job_id)
    real = outcomes.iterate_finished

    def breaking(*arguments: Any, **more: Any) -> Any:
        for num, outcome in enumerate(real(*arguments, **more)):
            if num == 2:
                raise DatabaseUnavailableError("away")
            yield outcome

    monkeypatch.setattr(outcomes, "iterate_finished", breaking)
    paused = between(lambda: None)
    assert follower(job_id).run() == 4
    assert (len(paused), _seen(tmp_path / "out.jsonl")) == (1, [0, 1, 2, 3])


def test_a_job_that_is_deleted_meanwhile_is_an_error(
    store: Any, finish: Any, sqlite_database: Database, follower: Any, between: Any
) -> None:
    job_id = store({"prompt": "x"})

    def delete() -> None:
        finish(sqlite_database, job_id)
        retention.delete(sqlite_database, job_id)

    between(delete)
    with pytest.raises(NotFoundError):
        follower(job_id).run()


def test_each_form_of_lines_can_be_followed_and_begins_once(
    store: Any, finish: Any, sqlite_database: Database, follower: Any, tmp_path: Path
) -> None:
    job_id = store({"prompt": "x"}, {"prompt": 5}, {"prompt": "x"})
    finish(sqlite_database, job_id)
    path = tmp_path / "out.csv"
    for after, num in ((0, 3), (1, 2)):
        assert follower(job_id, path, form=Form.CSV, after=after).run() == num
    rows = path.read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["index", "1", "0", "2", "0", "2"]
    assert follower(job_id, tmp_path / "openai", form=Form.OPENAI).run() == 3
    ids = [json.loads(line)["custom_id"] for line in (tmp_path / "openai").read_text().splitlines()]
    assert ids == ["request-1", "request-0", "request-2"], "errors stay among the others"


def test_what_has_no_lines_cannot_be_followed(store: Any, follower: Any) -> None:
    job_id = store({"prompt": "x"})
    for form in (Form.PARQUET, Form.CLOUDFLARE):
        with pytest.raises(SettingsError, match=f"{form} has no lines; jsonl, openai, csv have"):
            follower(job_id, form=form)
    with pytest.raises(SettingsError, match="leave out --errors-output"):
        follower(job_id, form=Form.OPENAI, errors_path="errors")


def test_a_file_that_is_there_is_not_overwritten_nor_mended(
    store: Any, finish: Any, sqlite_database: Database, follower: Any, tmp_path: Path
) -> None:
    job_id = store({"prompt": "x"})
    finish(sqlite_database, job_id)
    path = tmp_path / "out.jsonl"
    path.write_text("half a li")
    with pytest.raises(OutputError, match="is there already; --from POSITION goes on with it"):
        follower(job_id).run()
    with pytest.raises(OutputError, match="ends in the middle of a line"):
        follower(job_id, after=1).run()
    assert path.read_text() == "half a li"


def test_a_disk_that_is_full_is_named(
    store: Any, finish: Any, sqlite_database: Database, follower: Any
) -> None:
    job_id = store({"prompt": "x"})
    finish(sqlite_database, job_id)
    with pytest.raises(OutputError, match="/dev/full: No space left on device"):
        follower(job_id, Path("/dev/full")).run()


def test_stdout_is_flushed_at_each_pause(
    store: Any,
    follower: Any,
    between: Any,
    monkeypatch: pytest.MonkeyPatch,
    finish: Any,
    sqlite_database: Database,
) -> None:
    job_id = store(*[{"prompt": "x"}] * 2, chunk_size=1)
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stdout, os.fdopen(reading, "rb") as pipe:
        monkeypatch.setattr("sys.stdout", stdout)

        def step() -> None:
            finish(sqlite_database, job_id, max_chunks=1)

        def read_and_step() -> None:
            assert json.loads(pipe.readline())["index"] == 0
            finish(sqlite_database, job_id)

        between(step, read_and_step)
        assert follower(job_id, Path("-")).run() == 2
        assert json.loads(pipe.readline())["index"] == 1
