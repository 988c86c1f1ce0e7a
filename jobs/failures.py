"""Why a job's requests failed."""

from collections.abc import Sequence
from typing import Any

from db.activity import FailureGroup
from db.queries import Job
from jobs.error_codes import explain


def failures_as_dict(job: Job, groups: Sequence[FailureGroup]) -> dict[str, Any]:
    """What `errors --json` prints; a share is one of all the job's requests."""
    return {
        "job": job.id,
        "state": job.state,
        "total": job.counts.total,
        "failed": sum(group.num for group in groups),
        "cancelled": job.counts.cancelled,
        "expired": job.counts.expired,
        "errors": [_as_dict(job, group) for group in groups],
    }


def _as_dict(job: Job, group: FailureGroup) -> dict[str, Any]:
    known = explain(group.code)
    return {
        "code": group.code,
        "count": group.num,
        "share": round(group.num / job.counts.total, 6),
        "meaning": known.meaning,
        "advice": known.advice,
        "examples": [vars(example) for example in group.examples],
    }
