"""What `promptmill manifest` says."""

import hashlib
import json
from typing import Any

import pytest

from db import leases, transitions
from db.database import Database
from db.errors import NotFoundError
from jobs.cards import Card
from jobs.manifest import manifest
from jobs.seeds import JobSampling
from jobs.settings import Settings
from jobs.submit import SubmitOptions, submit

_DETAILS = {"engine": {"name": "echo", "arguments": {"num_seqs": 3}}, "machine": {"num_cores": 2}}


def test_a_manifest_names_all_that_the_answers_came_from(
    sqlite_database: Database, settings: Settings, card: Card, write: Any, finish: Any
) -> None:
    path = write({"prompt": "a"}, {"prompt": "b"})
    job = submit(sqlite_database, settings, card, str(path), SubmitOptions(name="nightly")).job
    so_far = manifest(sqlite_database, job.id)
    assert (so_far["job"]["state"], so_far["workers"]) == ("queued", [])
    finish(sqlite_database, job.id)
    with sqlite_database.write() as tx:
        transitions.register_worker(tx, "w1", card.name, "echo", "a-host", 1)
        transitions.ready_worker(tx, "w1", json.dumps(_DETAILS))
        transitions.register_worker(tx, "w2", card.name, "echo", "a-host", 1)
    for worker_id in ("w1", "w2"):
        leases.note_worker(sqlite_database, job.id, worker_id)
    found = manifest(sqlite_database, job.id)
    assert json.loads(json.dumps(found)) == found
    assert found["job"]["name"] == "nightly"
    assert found["job"]["counts"]["succeeded"] == 2
    assert found["input"] == {
        "name": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "format": "card",
        "selection": None,
    }
    assert (
        found["card"]["sha256"] == hashlib.sha256(found["card"]["text"].encode()).hexdigest() == card.sha256
    )
    assert found["card"]["limits"]["max_total_tokens"] == card.limits.max_total_tokens
    seed = JobSampling.of(job.id, card.sampling, None).seed
    assert found["sampling"] == {"card": card.sampling, "job": {}, "seed": seed}
    first, second = sorted(found["workers"], key=lambda worker: worker["id"])
    assert (first["host"], first["engine"], first["machine"]) == (
        "a-host",
        _DETAILS["engine"],
        _DETAILS["machine"],
    )
    assert second.keys() == {"id", "host", "started_at"}


def test_a_job_that_is_not_there_has_none(sqlite_database: Database) -> None:
    with pytest.raises(NotFoundError, match="no job job_x"):
        manifest(sqlite_database, "job_x")
