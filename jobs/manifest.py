"""What a job's answers came from: everything that would be needed to make them again."""

import json
from importlib import metadata
from typing import Any

from db import queries
from db.database import Database
from db.queries import Job, JobWorker
from jobs.cards import parse_card
from jobs.progress import counts_as_dict, format_time
from jobs.seeds import JobSampling


def manifest(database: Database, job_id: str) -> dict[str, Any]:
    """A JSON object with the job, its input's hash, its card as it was snapshot, its sampling defaults, and the engine,
    weights, packages and machine of each worker that ran anything of it. NotFoundError for a job that is not there.

    While the job is not over, it says what there is so far.
    """
    job = queries.get_job(database, job_id)
    card_text = queries.get_card(database, job_id)
    card = parse_card(card_text, "the job's card")
    return {
        "promptmill": metadata.version("promptmill"),
        "job": _job(job),
        "input": {
            "name": job.input_name,
            "sha256": job.input_sha256,
            "format": job.input_format,
            "selection": json.loads(job.selection) if job.selection else None,
        },
        "card": {
            "name": job.card_name,
            "sha256": job.card_sha256,
            "model": card.full_name,
            "limits": vars(card.limits),
            "text": card_text,
        },
        "sampling": {
            "card": card.sampling,
            "job": json.loads(job.sampling) if job.sampling else {},
            "seed": JobSampling.of(job.id, card.sampling, job.sampling).seed,
        },
        "workers": [_worker(worker) for worker in queries.list_job_workers(database, job_id)],
    }


def _job(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state,
        "labels": dict(job.labels),
        "parent": job.parent_id,
        "num_retried": job.num_retried,
        "counts": counts_as_dict(job.counts),
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.completion_tokens,
        "is_reusing": job.is_reusing,
        "num_reused": job.num_reused,
        "created_at": format_time(job.created_at),
        "started_at": format_time(job.started_at),
        "finished_at": format_time(job.finished_at),
    }


def _worker(worker: JobWorker) -> dict[str, Any]:
    told = json.loads(worker.details) if worker.details else {}
    return {
        "id": worker.id,
        "host": worker.host,
        "started_at": format_time(worker.started_at),
        **told,
    }
