"""One request of a job with everything that is known of it."""

from dataclasses import dataclass
from typing import Any

import orjson

from db import queries
from db.database import Database
from db.one_request import OneRequest, read_request
from jobs.forms.native import error_of, usage_of
from jobs.forms.params import params_finder
from jobs.progress import format_time


@dataclass(frozen=True)
class Shown:
    """`body`: what was handed in, `params`: what it runs with; both None for a bad line, which is not kept."""

    request: OneRequest
    num_requests: int
    body: dict[str, Any] | None
    params: dict[str, Any] | None

    @property
    def result(self) -> Any:
        outcome = self.request.outcome
        return None if outcome is None or outcome.result is None else orjson.loads(outcome.result)


def show(database: Database, job_id: str, index: int) -> Shown:
    """NotFoundError for a job or an index that is not there."""
    request = read_request(database, job_id, index)
    job = queries.get_job(database, job_id)
    if request.body is None:
        return Shown(request, job.counts.total, None, None)
    params = params_finder(database, job)(request.body, index)
    return Shown(request, job.counts.total, orjson.loads(request.body), params)


def shown_as_dict(shown: Shown) -> dict[str, Any]:
    """A result line with the request, its parameters and times; `pending` and `running` are statuses too here."""
    request, outcome = shown.request, shown.request.outcome
    return {
        "job": request.job_id,
        "index": request.index,
        "custom_id": request.custom_id,
        "status": request.status,
        "result": shown.result,
        "finish_reason": outcome and outcome.finish_reason,
        "usage": outcome and usage_of(outcome),
        "error": outcome and error_of(outcome),
        "position": outcome and outcome.position,
        "attempt": request.attempt,
        "host": request.host,
        "started_at": format_time(request.started_at),
        "finished_at": format_time(outcome.finished_at if outcome else None),
        "params": shown.params,
        "request": shown.body,
    }
