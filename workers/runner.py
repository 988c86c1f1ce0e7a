"""Running chunks: claim one, feed it to the engine, write its results as they finish, claim the next."""

import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeVar

import orjson

from db import leases, queries
from db.database import Database
from db.errors import DatabaseUnavailableError, EngineError, LeaseLostError
from db.leases import NewResult, PendingRequest
from db.transitions import Lease
from jobs.cards import parse_card
from jobs.generation import parse_generation
from jobs.schema import Problem, RequestSchema
from jobs.settings import Settings
from workers.engine import Engine, EngineRequest, Failure
from workers.feed import Feed
from workers.waiting import Outcome

_Value = TypeVar("_Value")

_log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 5.0
_SUSPECT_POLL_S = 0.1
# How often a thread that waits to claim looks whether the worker drains.
_HUNGER_POLL_S = 0.1
# How often a request goes back to the engine after a failure that may pass.
_MAX_RETRIES = 2
# How long a stopping worker tries to write to a database that is away.
_STOP_WRITE_S = 5.0


class StopReason(Enum):
    """Why a chunk stops before its last request: the lease is gone, or its rest is to be given back."""

    LEASE_LOST = "lease lost"
    CANCELLED = "job cancelled"
    DRAINING = "worker draining"
    ENGINE_DEAD = "engine dead"


@dataclass
class ChunkRun:
    """A chunk in flight. `stop` wakes the thread that runs it."""

    lease: Lease
    outcomes: queue.SimpleQueue[Outcome | None] = field(default_factory=queue.SimpleQueue)
    stop_reason: StopReason | None = None

    def stop(self, reason: StopReason) -> None:
        if self.stop_reason is None or reason in (StopReason.LEASE_LOST, StopReason.ENGINE_DEAD):
            self.stop_reason = reason
        self.outcomes.put(None)


@dataclass(frozen=True)
class _Flight:
    """A request in the engine."""

    index: int
    request: EngineRequest
    num_retries: int = 0


class _JobCard:
    """What a job's own snapshot of its card says; the snapshot never changes, so it is read once."""

    def __init__(self, text: str) -> None:
        card = parse_card(text, "the job's card")
        self.schema = RequestSchema(card.input_schema)
        self.limits = card.limits
        self.sampling = card.sampling


class Runner:
    """The chunks of one worker. `work` is called by as many threads as chunks shall be in flight."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        card_name: str,
        worker_id: str,
        feed: Feed,
        engine: Engine,
        *,
        only_job_id: str | None = None,
        on_engine_death: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._settings = settings
        self._card_name = card_name
        self._worker_id = worker_id
        self._feed = feed
        self._engine = engine
        self._only_job_id = only_job_id
        self._on_engine_death = on_engine_death
        self._lock = threading.Lock()
        self._runs: dict[str, ChunkRun] = {}
        self._cards: dict[str, _JobCard] = {}
        self._num_busy = 0
        self._claiming = threading.Condition()
        self._has_suspect = False
        self._draining = threading.Event()

    @property
    def num_busy(self) -> int:
        """Threads that are in `work` now."""
        return self._num_busy

    @property
    def is_draining(self) -> bool:
        return self._draining.is_set()

    def runs(self) -> list[ChunkRun]:
        """The chunks in flight."""
        with self._lock:
            return list(self._runs.values())

    def drain(self) -> None:
        """Claim nothing more; what is unfinished is aborted and given back, what is finished is written."""
        self._draining.set()
        for run in self.runs():
            run.stop(StopReason.DRAINING)

    def stop_lease(self, lease_id: str, reason: StopReason) -> None:
        """Stop one chunk; nothing happens if it is over."""
        with self._lock:
            run = self._runs.get(lease_id)
        if run is not None:
            run.stop(reason)

    def check_engine(self) -> None:
        """Drain and report when the engine is dead, also while nothing runs. Called with every heartbeat."""
        self._feed.check()
        if self._feed.is_dead:
            self.drain()
            self._on_engine_death()

    def work(self) -> int:
        """Run chunks until none can be claimed, or the worker drains; the number run."""
        with self._lock:
            self._num_busy += 1
        num_chunks = 0
        try:
            while (lease := self._claim()) is not None:
                self._run(lease)
                num_chunks += 1
        finally:
            with self._lock:
                self._num_busy -= 1
        return num_chunks

    def _claim(self) -> Lease | None:
        """The next chunk; None when there is none, or when the worker drains.

        One claim at a time, when the feed has room for it, and none while a suspect chunk waits or runs: it runs
        alone.
        """
        with self._claiming:
            while self._has_suspect and not self.is_draining:
                self._claiming.wait(_SUSPECT_POLL_S)
            while not self.is_draining and not self._feed.wait_hungry(_HUNGER_POLL_S):
                pass
            if self.is_draining:
                return None
            try:
                lease = self._patiently(
                    lambda: leases.claim(
                        self._database,
                        self._worker_id,
                        self._card_name,
                        self._settings.lease_s,
                        self._only_job_id,
                    )
                )
            except DatabaseUnavailableError:
                return None  # the worker drains, and will not wait for it
            self._has_suspect = lease is not None and lease.is_suspect
            if lease is not None:
                self._feed.expect(lease.lease_id, lease.num_requests)
        return lease

    def _run(self, lease: Lease) -> None:
        run = ChunkRun(lease)
        with self._lock:
            self._runs[lease.lease_id] = run
        if self.is_draining:  # it began between the claim and here
            run.stop(StopReason.DRAINING)
        try:
            if lease.is_suspect:
                self._isolate(run)
            self._run_chunk(run)
        except LeaseLostError:
            _log.warning("chunk %d: lease lost, its results are discarded", lease.chunk_id)
        except DatabaseUnavailableError:
            _log.warning("chunk %d: the database is away, its lease will expire", lease.chunk_id)
        except EngineError:
            # its leases are taken back by the supervisor, once this process is gone
            self._draining.set()
            self._on_engine_death()
        except Exception as error:
            # A bug. Its text may quote a request; where it happened does not. The lease expires, and counts.
            trace = "".join(traceback.format_tb(error.__traceback__))
            _log.error("chunk %d: %s\n%s", lease.chunk_id, type(error).__name__, trace)
        finally:
            self._feed.arrived(lease.lease_id)
            with self._lock:
                del self._runs[lease.lease_id]
            if lease.is_suspect:
                with self._claiming:
                    self._has_suspect = False
                    self._claiming.notify_all()

    def _isolate(self, run: ChunkRun) -> None:
        """Wait until every other chunk of this worker is over, and write down that this one is alone."""
        _log.warning("chunk %d is suspect: waiting to run it alone", run.lease.chunk_id)
        while len(self.runs()) > 1 and run.stop_reason is None:
            time.sleep(_SUSPECT_POLL_S)
        if run.stop_reason is None:
            self._patiently(lambda: leases.isolate(self._database, run.lease))

    def _run_chunk(self, run: ChunkRun) -> None:
        if run.stop_reason is not None:
            self._close(run, [], is_whole=False)
            return
        pending = self._patiently(lambda: leases.load_requests(self._database, run.lease))
        card = self._card(run.lease.job_id)
        results, rendered = self._render(card, pending)
        unfinished = {request.key: _Flight(index, request) for index, request in rendered}
        self._feed.submit([request for _, request in rendered], run.outcomes.put)
        self._feed.arrived(run.lease.lease_id)
        flush_at = time.monotonic() + self._settings.flush_s
        try:
            while unfinished and run.stop_reason is None:
                for outcome in self._receive(run, flush_at):
                    flight = unfinished.pop(outcome.key)
                    if not self._retry(flight, outcome, unfinished, run):
                        results.append(_new_result(flight, outcome))
                if results and unfinished and time.monotonic() >= flush_at:
                    self._record(run, results, is_last=False)
                    results = []
                if time.monotonic() >= flush_at:
                    flush_at = time.monotonic() + self._settings.flush_s
        finally:
            self._feed.abort(list(unfinished))
        self._close(run, results, is_whole=not unfinished)

    def _retry(
        self, flight: _Flight, outcome: Outcome, unfinished: dict[int, _Flight], run: ChunkRun
    ) -> bool:
        """Hand a request to the engine again whose failure may pass, a few times."""
        if not (isinstance(outcome, Failure) and outcome.is_transient) or flight.num_retries >= _MAX_RETRIES:
            return False
        request = replace(flight.request, key=self._feed.new_key())
        unfinished[request.key] = _Flight(flight.index, request, flight.num_retries + 1)
        self._feed.submit([request], run.outcomes.put)
        return True

    def _close(self, run: ChunkRun, results: list[NewResult], *, is_whole: bool) -> None:
        if run.stop_reason is StopReason.LEASE_LOST:
            raise LeaseLostError(f"the lease on chunk {run.lease.chunk_id} is lost")
        if is_whole:
            self._record(run, results, is_last=True)
            return
        if results:
            self._record(run, results, is_last=False)
        if run.stop_reason is StopReason.ENGINE_DEAD:
            raise EngineError("the engine died")
        self._patiently(lambda: leases.release(self._database, run.lease))

    def _receive(self, run: ChunkRun, until: float) -> list[Outcome]:
        """What has finished since the last call; waits for the first until the next flush is due."""
        received: list[Outcome] = []
        try:
            first = run.outcomes.get(timeout=max(until - time.monotonic(), 0.001))
            while True:
                if first is not None:
                    received.append(first)
                first = run.outcomes.get_nowait()
        except queue.Empty:
            pass
        if self._feed.is_dead:
            run.stop(StopReason.ENGINE_DEAD)
        return received

    def _card(self, job_id: str) -> _JobCard:
        card = self._cards.get(job_id)
        if card is None:
            text = self._patiently(lambda: queries.get_card(self._database, job_id))
            card = self._cards[job_id] = _JobCard(text)
        return card

    def _render(
        self, card: _JobCard, pending: Sequence[PendingRequest]
    ) -> tuple[list[NewResult], list[tuple[int, EngineRequest]]]:
        """Requests that fail before the engine as results, and the others ready for it, with their index."""
        generations = [
            parse_generation(card.schema, orjson.loads(request.body), card.sampling) for request in pending
        ]
        prompts = self._engine.render(generations, card.limits)
        failed: list[NewResult] = []
        rendered: list[tuple[int, EngineRequest]] = []
        for request, generation, prompt in zip(pending, generations, prompts, strict=True):
            if isinstance(prompt, Problem):
                failed.append(
                    NewResult(
                        request.index,
                        error_code=prompt.code,
                        error_message=prompt.message,
                    )
                )
            else:
                key = self._feed.new_key()
                rendered.append(
                    (
                        request.index,
                        EngineRequest(
                            key,
                            prompt,
                            generation.max_tokens,
                            generation.stream,
                            generation.sampling,
                        ),
                    )
                )
        return failed, rendered

    def _record(self, run: ChunkRun, results: list[NewResult], *, is_last: bool) -> None:
        self._patiently(lambda: leases.record(self._database, run.lease, results, is_last=is_last))

    def _patiently(self, call: Callable[[], _Value]) -> _Value:
        """Call again while the database is away, with growing pauses.

        What is finished waits in memory meanwhile, a chunk at most. A worker that drains gives up after a few
        seconds: then the lease expires, and only what was not written runs again.
        """
        pause_s = _FIRST_BACKOFF_S
        give_up_at: float | None = None
        while True:
            try:
                return call()
            except DatabaseUnavailableError as error:
                if self.is_draining:
                    give_up_at = give_up_at or time.monotonic() + _STOP_WRITE_S
                    if time.monotonic() > give_up_at:
                        raise
                _log.warning("%s; trying again in %.1f s", error, pause_s)
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, _MAX_BACKOFF_S)


def _new_result(flight: _Flight, outcome: Outcome) -> NewResult:
    index, num_retries = flight.index, flight.num_retries
    if isinstance(outcome, Failure):
        return NewResult(
            index, error_code="engine_error", error_message=outcome.message, num_retries=num_retries
        )
    result = {"response": outcome.text} if outcome.pieces is None else _event_stream(outcome.pieces)
    return NewResult(
        index,
        result=orjson.dumps(result).decode(),
        finish_reason=outcome.finish_reason,
        prompt_tokens=outcome.num_prompt_tokens,
        completion_tokens=outcome.num_completion_tokens,
        num_retries=num_retries,
    )


def _event_stream(pieces: Sequence[str]) -> str:
    """The card's other output form: one event for each piece that the engine produced."""
    events = [f"data: {orjson.dumps({'response': piece}).decode()}\n\n" for piece in pieces]
    return "".join(events) + "data: [DONE]\n\n"
