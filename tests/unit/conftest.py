"""What the unit ring shares: cards, input files, and jobs brought to their end without a worker or an engine."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from db import leases, queries, transitions
from db.database import Database
from db.leases import NewResult, Record
from db.upgrade import upgrade
from jobs.cards import Card, find_card
from jobs.settings import Settings

_WORKER = "worker_of_tests"
_LEASE_S = 300.0

Write = Callable[..., Path]
Finish = Callable[..., None]


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output looks the same wherever the tests run."""
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database, made once: the migrations take longer than most tests of this ring."""
    path = tmp_path_factory.mktemp("migrated") / "promptmill.db"
    database = Database(f"sqlite:///{path}")
    upgrade(database)
    database.close()
    return path


@pytest.fixture
def sqlite_database(home: Path, migrated_file: Path) -> Iterator[Database]:
    """The database that the default settings name, empty."""
    path = home / "promptmill.db"
    shutil.copyfile(migrated_file, path)
    path.chmod(0o600)
    opened = Database(f"sqlite:///{path}")
    yield opened
    opened.close()


@pytest.fixture
def card(tmp_path: Path) -> Card:
    """The Hermes card, as it comes with promptmill."""
    return find_card(tmp_path / "no-home", "hermes-2-pro-mistral-7b")


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an input file; each line is a JSON value, or bytes that go in as they are."""

    def make(*lines: Any, name: str = "in.jsonl") -> Path:
        path = tmp_path / name
        texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"".join(text + b"\n" for text in texts))
        return path

    return make


@pytest.fixture
def finish() -> Finish:
    """Runs a job to its end as a worker would, with the results given; an index without one succeeds."""

    def run(database: Database, job_id: str, *results: NewResult, max_chunks: int = 1_000_000) -> None:
        by_index = {result.index: result for result in results}
        with database.write() as tx:
            transitions.register_worker(tx, f"{_WORKER}_{job_id}", "any", "echo", "host", 1)
        card_name = queries.get_job(database, job_id).card_name
        for _ in range(max_chunks):
            lease = leases.claim(database, f"{_WORKER}_{job_id}", card_name, _LEASE_S, job_id)
            if lease is None:
                return
            batch = [
                by_index.get(request.index, _succeeded(request.index))
                for request in leases.load_requests(database, lease)
            ]
            leases.record(database, [Record(lease, batch, is_last=True)])

    return run


def _succeeded(index: int) -> NewResult:
    return NewResult(
        index,
        result=json.dumps({"response": f"answer {index}"}),
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=2,
    )
