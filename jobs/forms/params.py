"""The parameters that each request of a job ran with, told again from the job and the request."""

from collections.abc import Callable
from typing import Any

import orjson

from db import queries
from db.database import Database
from db.outcomes import Outcome
from db.queries import Job
from jobs.cards import parse_card
from jobs.schema import RequestSchema
from jobs.seeds import JobSampling, params_of


def params_finder(database: Database, job: Job) -> Callable[[str, int], dict[str, Any]]:
    """The parameters by a request's body and index."""
    card = parse_card(queries.get_card(database, job.id), "the job's card")
    schema = RequestSchema(card.input_schema)
    sampling = JobSampling.of(job.id, card.sampling, job.sampling)
    return lambda body, index: params_of(sampling.generation(schema, orjson.loads(body), index))


def params_adder(database: Database, job: Job) -> Callable[[Outcome], Outcome]:
    """Puts `params` into an outcome that has its body; a bad line has none. What has them keeps them."""
    find_params = params_finder(database, job)

    def add(outcome: Outcome) -> Outcome:
        if outcome.body is not None and outcome.params is None:
            outcome.params = orjson.dumps(find_params(outcome.body, outcome.index)).decode()
        return outcome

    return add
