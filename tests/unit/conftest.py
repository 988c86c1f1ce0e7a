"""What the unit ring shares: cards, input files, and jobs brought to their end without a worker or an engine."""

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from erring import Cause, assert_error, make_world

import cli
from cli import Exit
from db import leases, queries, transitions
from db.database import HEAD_REVISION, Database
from db.leases import NewResult, Record
from db.queries import Counts, Job
from db.states import InputFormat, JobState
from db.upgrade import upgrade
from jobs.cards import Card, find_card
from jobs.settings import Settings
from jobs.submit import OnInvalid, SubmitOptions, submit

_WORKER = "worker_of_tests"
_LEASE_S = 300.0

Write = Callable[..., Path]
Finish = Callable[..., None]
Store = Callable[..., str]
Run = Callable[..., Result]
MakeJob = Callable[..., Job]


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
def store(sqlite_database: Database, settings: Settings, card: Card, write: Write) -> Store:
    """Submits lines as a job, bad ones skipped; its id."""

    def run(*lines: Any, chunk_size: int = 64) -> str:
        options = SubmitOptions(on_invalid=OnInvalid.SKIP)
        changed = settings.model_copy(update={"chunk_num_requests": chunk_size})
        return submit(sqlite_database, changed, card, str(write(*lines)), options).job.id

    return run


@pytest.fixture
def run(sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> Run:  # noqa: ARG001  the file is what counts
    """Runs `promptmill` in this process; it must end with `code`, and show no traceback."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def invoke(*arguments: object, code: Exit = Exit.DONE, stdin: str | None = None) -> Result:
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["promptmill", *words])
        result = CliRunner().invoke(cli.main, words, input=stdin)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return invoke


@pytest.fixture
def cause(
    tmp_path: Path, sqlite_database: Database, store: Store, finish: Finish, monkeypatch: pytest.MonkeyPatch
) -> Cause:
    """Runs a command that fails in a folder of good and bad things, and holds its exit code and its text."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    done = store({"prompt": "x"})
    finish(sqlite_database, done)
    queued = store({"prompt": "x"})
    make_world(tmp_path, tmp_path / "home", sqlite_database)
    words = {"queued": queued, "done": done, "both": ", ".join(sorted((queued, done))), "here": str(tmp_path)}
    return partial(assert_error, {**words, "home": f"{tmp_path}/home", "head": HEAD_REVISION}, monkeypatch)


@pytest.fixture
def finish() -> Finish:
    """Runs a job to its end as a worker would, with the results given; an index without one succeeds."""

    def run(database: Database, job_id: str, *results: NewResult, max_chunks: int = 1_000_000) -> None:
        by_index = {result.index: result for result in results}
        if not any(worker.id == f"{_WORKER}_{job_id}" for worker in queries.list_workers(database)):
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


@pytest.fixture
def make_job() -> MakeJob:
    """A job as it is read, in the middle of its run."""

    def make(**values: object) -> Job:
        defaults: dict[str, object] = {
            "id": "job_0123456789",
            "name": None,
            "state": JobState.IN_PROGRESS,
            "priority": 0,
            "card_name": "hermes-2-pro-mistral-7b",
            "card_sha256": "c" * 64,
            "input_name": "in.jsonl",
            "input_sha256": "i" * 64,
            "input_format": InputFormat.CARD,
            "sampling": None,
            "created_at": 1_700_000_000.25,
            "started_at": 1_700_000_010.0,
            "finished_at": None,
            "counts": Counts(pending=50, running=30, succeeded=18, failed=2),
            "prompt_tokens": 12_345,
            "completion_tokens": 67_890,
            "requests_per_s": 4.0,
            "completion_tokens_per_s": 1_234.5,
        }
        return Job(**{**defaults, **values})  # type: ignore[arg-type]

    return make


@pytest.fixture
def over(make_job: MakeJob) -> Job:
    """The same, completed."""
    return make_job(
        state=JobState.COMPLETED,
        counts=Counts(succeeded=98, failed=2),
        finished_at=1_700_000_100.0,
    )


def _succeeded(index: int) -> NewResult:
    return NewResult(
        index,
        result=json.dumps({"response": f"answer {index}"}),
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=2,
    )
