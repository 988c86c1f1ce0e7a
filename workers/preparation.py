"""From a chunk's requests to what goes to the engine, what waits for another request, and what needs neither."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import orjson

from db import leases, queries
from db.database import Database
from db.leases import NewResult, PendingRequest
from db.queries import Recipe
from db.transitions import Lease
from jobs.cards import parse_card
from jobs.content_keys import ContentKeys
from jobs.schema import Problem, RequestSchema
from jobs.seeds import JobSampling
from workers.chunk_run import Flight
from workers.engine import Engine, EngineRequest
from workers.patience import Patience
from workers.reuse import Reuse

# Compiled schemas take 33 KB each.
_MAX_CARDS = 64


class _JobCard:
    """What a job's own snapshot of its card says; the snapshot never changes, so it is read once."""

    def __init__(self, job_id: str, recipe: Recipe, engine: Engine) -> None:
        card = parse_card(recipe.card, "the job's card")
        self.schema = RequestSchema(card.input_schema)
        self.limits = card.limits
        self.sampling = JobSampling.of(job_id, card.sampling, recipe.sampling)
        self.content_keys = ContentKeys(card.sha256, engine.details)
        self.is_reusing = recipe.is_reusing


@dataclass
class Prepared:
    """`results` are there without the engine, `flights` are ready for it, `twins` wait for what another request
    generates."""

    results: list[NewResult]
    flights: list[Flight] = field(default_factory=list)
    twins: list[Flight] = field(default_factory=list)


class Preparation:
    """For all chunks of a worker; its slots call it at the same time."""

    def __init__(
        self,
        database: Database,
        patience: Patience,
        worker_id: str,
        engine: Engine,
        reuse: Reuse,
        new_key: Callable[[], int],
    ) -> None:
        self._database = database
        self._patience = patience
        self._worker_id = worker_id
        self._engine = engine
        self._reuse = reuse
        self._new_key = new_key
        self._load_once = lru_cache(_MAX_CARDS)(self._load_card)
        # the slots begin a job's first chunks together, and lru_cache would let each of them load it
        self._loading = threading.Lock()

    def prepare(self, lease: Lease, pending: Sequence[PendingRequest]) -> Prepared:
        """LeaseLostError when the chunk has passed on."""
        card = self._card(lease.job_id)
        generations = {
            request.index: card.sampling.generation(card.schema, orjson.loads(request.body), request.index)
            for request in pending
        }
        keys = {index: card.content_keys.of(one) for index, one in generations.items() if one.is_repeatable}
        plan = self._reuse.plan(lease, keys, is_reusing=card.is_reusing)
        prepared = Prepared(list(plan.results))
        for result in plan.results:
            del generations[result.index]
        prompts = self._engine.render(list(generations.values()), card.limits)
        for (index, generation), prompt in zip(generations.items(), prompts, strict=True):
            key = keys.get(index)
            if isinstance(prompt, Problem):
                code, message = prompt.code, prompt.message
                failed = NewResult(index, error_code=code, error_message=message, content_key=key)
                prepared.results.append(failed)
                continue
            request = EngineRequest.of(self._new_key(), prompt, generation)
            flight = Flight(index, request, content_key=key)
            (prepared.twins if index in plan.twins else prepared.flights).append(flight)
        return prepared

    def _card(self, job_id: str) -> _JobCard:
        with self._loading:
            return self._load_once(job_id)

    def _load_card(self, job_id: str) -> _JobCard:
        """Once a job, or nearly so: it is also kept that this worker runs something of it."""
        self._patience(lambda: leases.note_worker(self._database, job_id, self._worker_id))
        recipe = self._patience(lambda: queries.get_recipe(self._database, job_id))
        return _JobCard(job_id, recipe, self._engine)
