"""results --with-params: the parameters that each request ran with, in each form that has room for them."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from db.database import Database
from db.errors import SettingsError
from db.queries import Job
from jobs.cards import Card
from jobs.export import export, options_for
from jobs.follow import Follower
from jobs.seeds import JobSampling
from jobs.settings import Settings
from jobs.submit import OnInvalid, SubmitOptions, submit


@pytest.fixture
def job(sqlite_database: Database, settings: Settings, card: Card, write: Any, finish: Any) -> Job:
    path = write({"prompt": "x"}, {"prompt": "x", "temperature": 0}, b"{", {"prompt": "x", "seed": 5, "n": 2})
    options = SubmitOptions(sampling={"top_p": 0.5, "max_tokens": 9}, on_invalid=OnInvalid.SKIP)
    made = submit(sqlite_database, settings, card, str(path), options).job
    finish(sqlite_database, made.id)
    return made


def expected(job: Job, card: Card) -> list[dict[str, Any] | None]:
    sampling = JobSampling.of(job.id, card.sampling, job.sampling)
    seed = sampling.generation(_schema(card), {"prompt": "x"}, 0).sampling["seed"]
    return [
        {"max_tokens": 9, "top_p": 0.5, "seed": seed},
        {"max_tokens": 9, "temperature": 0, "top_p": 0.5},
        None,
        {"max_tokens": 9, "n": 2, "seed": 5, "top_p": 0.5},
    ]


def _schema(card: Card) -> Any:
    from jobs.schema import RequestSchema

    return RequestSchema(card.input_schema)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_have_them(sqlite_database: Database, job: Job, card: Card, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    export(sqlite_database, job.id, str(path), options_for(job, str(path), with_params=True))
    assert [line["params"] for line in lines_of(path)] == expected(job, card)
    Follower(
        sqlite_database, job, str(tmp_path / "f"), options_for(job, "f", with_params=True, is_followed=True)
    ).run()
    followed = {line["index"]: line["params"] for line in lines_of(tmp_path / "f")}
    assert [followed[index] for index in range(4)] == expected(job, card)


def test_tables_have_a_column_of_them(
    sqlite_database: Database, job: Job, card: Card, tmp_path: Path
) -> None:
    path = tmp_path / "out.csv"
    export(sqlite_database, job.id, str(path), options_for(job, str(path), with_params=True))
    with path.open() as file:
        cells = [row["params"] for row in csv.DictReader(file)]
    assert [json.loads(cell) if cell else None for cell in cells] == expected(job, card)
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "out.parquet"
    export(sqlite_database, job.id, str(path), options_for(job, str(path), fields="index,params.seed"))
    seeds = [found and found.get("seed") for found in expected(job, card)]
    assert parquet.read_table(path)["params.seed"].to_pylist() == seeds


def test_somebody_else_s_form_has_no_room(job: Job) -> None:
    with pytest.raises(SettingsError, match="--with-params"):
        options_for(job, "-", form="openai", with_params=True)
    with pytest.raises(SettingsError, match="--fields says all"):
        options_for(job, "-", fields="index", with_params=True)
