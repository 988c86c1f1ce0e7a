"""`results --merged`: one line a request of a job, with its newest outcome among all jobs that ran it again."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from db import outcomes, queries
from db.database import Database
from db.errors import NotFoundError, SettingsError
from db.leases import NewResult
from jobs import merged, retention
from jobs.export import ExportOptions, export, options_for
from jobs.forms import Form
from jobs.rerun import RerunOptions, rerun
from jobs.retry import retry
from jobs.settings import Settings

_NUM = 6


def _says(index: int, text: str, finish_reason: str = "stop") -> NewResult:
    return NewResult(index, json.dumps({"response": text}), finish_reason, 3, 2)


def _fails(index: int) -> NewResult:
    return NewResult(index, error_code="engine_error", error_message="it broke")


Again = Callable[..., str]


@pytest.fixture
def again(sqlite_database: Database, settings: Settings, finish: Any) -> Again:
    """Runs these indexes of a job again, with these results; the new job's id."""

    def run(job_id: str, indexes: Sequence[int], *results: NewResult, changes: Sequence[str] = ()) -> str:
        where = [f"index={index}" for index in indexes]
        made = rerun(sqlite_database, settings, job_id, RerunOptions(where, changes))
        finish(sqlite_database, made.job.id, *results)
        return made.job.id

    return run


@pytest.fixture
def family(store: Any, sqlite_database: Database, finish: Any, again: Again) -> dict[str, str]:
    """Names by ids. In A 1, 2, 3 and 5 fail, 4 is cut off. B, of A, runs all but 0 again, and 1 and 5 fail; C, of B,
    runs 1, 3 and 4, and 3 fails; D, of A, runs 2, and it fails."""
    job_a = store(*[{"prompt": f"p{n}", "custom_id": f"id-{n}"} for n in range(_NUM)])
    finish(sqlite_database, job_a, *map(_fails, (1, 2, 3, 5)), _says(4, "A cut", "length"))
    job_b = again(job_a, [1, 2, 3, 4, 5], _fails(0), _says(1, "B"), _says(2, "B"), _says(3, "B"), _fails(4))
    job_c = again(job_b, [0, 2, 3], _says(0, "C"), _fails(1), _says(2, "C"), changes=["max_tokens=9"])
    job_d = again(job_a, [2], _fails(0))
    return {job_a: "A", job_b: "B", job_c: "C", job_d: "D"}


def _merged(database: Database, job_id: str) -> list[tuple[int, str | None, str, str | None, str | None]]:
    job = queries.get_job(database, job_id)
    found = merged.merged_outcomes(database, job, queries.list_descendants(database, job))
    return [
        (
            one.index,
            one.custom_id,
            one.status.value,
            json.loads(one.result)["response"] if one.result else None,
            one.job_id,
        )
        for one in found
    ]


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_the_newest_success_counts_and_else_the_newest_outcome(
    sqlite_database: Database, family: dict[str, str], monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(outcomes, "_PAGE_REQUESTS", page)
    job_a, job_b, job_c, _ = family

    def seen(job_id: str) -> list[tuple[Any, ...]]:
        return [(*row[:4], family[row[4] or ""]) for row in _merged(sqlite_database, job_id)]

    assert seen(job_a) == [
        (0, "id-0", "succeeded", "answer 0", "A"),
        (1, "id-1", "succeeded", "C", "C"),
        (2, "id-2", "succeeded", "B", "B"),
        (3, "id-3", "succeeded", "B", "B"),
        (4, "id-4", "succeeded", "C", "C"),
        (5, "id-5", "failed", None, "B"),
    ]
    assert seen(job_b) == [
        (0, "id-1", "succeeded", "C", "C"),
        (1, "id-2", "succeeded", "B", "B"),
        (2, "id-3", "succeeded", "B", "B"),
        (3, "id-4", "succeeded", "C", "C"),
        (4, "id-5", "failed", None, "B"),
    ]
    assert [row[-1] for row in seen(job_c)] == ["C"] * 3


def test_a_job_that_is_deleted_takes_only_its_own_outcomes_along(
    sqlite_database: Database, family: dict[str, str]
) -> None:
    job_a, job_b, *_ = family
    retention.delete(sqlite_database, job_b)
    assert [family[row[4] or ""] for row in _merged(sqlite_database, job_a)] == ["A", "C", "D", "C", "C", "A"]
    retention.delete(sqlite_database, job_a)
    job_c = list(family)[2]
    assert [family[row[4] or ""] for row in _merged(sqlite_database, job_c)] == ["C"] * 3


def test_a_job_that_is_deleted_meanwhile_leaves_no_file(
    sqlite_database: Database, family: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job_a, _, job_c, _ = family
    real = merged._root_index

    def delete_first(outcome: Any) -> int:
        if queries.list_descendants(sqlite_database, queries.get_job(sqlite_database, job_a))[1].id == job_c:
            retention.delete(sqlite_database, job_c)
        return real(outcome)

    monkeypatch.setattr(merged, "_root_index", delete_first)
    with pytest.raises(NotFoundError, match=job_c):
        _export(sqlite_database, job_a, tmp_path / "out.jsonl")
    assert list(tmp_path.glob("out*")) == []


def test_a_retry_in_place_counts_as_what_its_job_says(
    sqlite_database: Database, family: dict[str, str], finish: Any
) -> None:
    job_a = next(iter(family))
    retry(sqlite_database, job_a)
    finish(sqlite_database, job_a, _says(2, "A"), _says(5, "A"), _fails(1), _fails(3))
    texts = [row[3] for row in _merged(sqlite_database, job_a)]
    assert texts == ["answer 0", "C", "B", "B", "C", "A"]


# --- every form -----------------------------------------------------------------------------------------------


def _export(database: Database, job_id: str, path: Path, **options: Any) -> int:
    job = queries.get_job(database, job_id)
    reruns = queries.list_descendants(database, job)
    return export(database, job_id, str(path), options_for(job, str(path), descendants=reruns, **options))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_say_which_job_they_come_from(
    sqlite_database: Database, family: dict[str, str], tmp_path: Path
) -> None:
    job_a, path = next(iter(family)), tmp_path / "out.jsonl"
    assert _export(sqlite_database, job_a, path) == _NUM
    assert [(line["index"], family[line["job"]]) for line in _lines(path)] == list(enumerate("ACBBCB"))
    assert _export(sqlite_database, job_a, path, only=["failed"]) == 1
    assert _lines(path)[0]["index"] == 5
    _export(sqlite_database, job_a, path, fields="custom_id,job,result.response")
    assert _lines(path)[1] == {"custom_id": "id-1", "job": list(family)[2], "result.response": "C"}


def test_requests_and_params_are_those_that_the_outcome_came_from(
    sqlite_database: Database, family: dict[str, str], tmp_path: Path
) -> None:
    job_a, path = next(iter(family)), tmp_path / "out.jsonl"
    _export(sqlite_database, job_a, path, with_input=True, with_params=True)
    lines = _lines(path)
    assert [line["request"].get("max_tokens") for line in lines] == [None, 9, None, None, 9, None]
    assert [line["params"]["max_tokens"] for line in lines] == [256, 9, 256, 256, 9, 256]
    own = tmp_path / "own.jsonl"
    for job_id in family:
        job = queries.get_job(sqlite_database, job_id)
        export(sqlite_database, job_id, str(own), options_for(job, str(own), with_params=True))
        params = {line["custom_id"]: line["params"] for line in _lines(own)}
        mine = [line for line in lines if line["job"] == job_id]
        assert [params[line["custom_id"]] for line in mine] == [line["params"] for line in mine]


def test_tables_have_a_column_for_the_job(
    sqlite_database: Database, family: dict[str, str], tmp_path: Path
) -> None:
    job_a, path = next(iter(family)), tmp_path / "out.csv"
    _export(sqlite_database, job_a, path, with_input=True)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [family[row["job"]] for row in rows] == list("ACBBCB")
    # a field that only the requests of one job have
    assert [row["max_tokens"] for row in rows] == ["", "9", "", "", "9", ""]
    _export(sqlite_database, job_a, tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert [family[one] for one in table.column("job").to_pylist()] == list("ACBBCB")


def test_the_forms_of_others_have_no_place_for_it(
    sqlite_database: Database, family: dict[str, str], tmp_path: Path
) -> None:
    job_a, path = next(iter(family)), tmp_path / "out.jsonl"
    _export(sqlite_database, job_a, path, form="openai")
    assert len(_lines(path)) == 5
    assert len(_lines(tmp_path / "out.errors.jsonl")) == 1
    _export(sqlite_database, job_a, path, form="cloudflare")
    responses = json.loads(path.read_text())["result"]["responses"]
    assert [one["result"] and one["result"]["response"] for one in responses] == [
        "answer 0",
        "C",
        "B",
        "B",
        "C",
        None,
    ]


@pytest.mark.parametrize("options", [{"order": "finished"}, {"after": 3}, {"is_followed": True}])
def test_the_order_of_finishing_is_that_of_one_job(
    sqlite_database: Database, family: dict[str, str], tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(
        SettingsError, match="--merged gives requests in input order, without --follow, --from"
    ):
        _export(sqlite_database, next(iter(family)), tmp_path / "out.jsonl", **options)


def test_without_merging_no_line_has_a_job() -> None:
    with pytest.raises(SettingsError, match="job is there with --merged alone"):
        ExportOptions(Form.JSONL, fields=("index", "job"))
