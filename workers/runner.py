"""Running chunks: claim one, feed it to the engine, have its results written as they finish, claim the next."""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from db import leases
from db.database import Database
from db.errors import DatabaseUnavailableError, EngineError, LeaseLostError
from db.transitions import Lease
from jobs.settings import Settings
from workers.chunk_run import ChunkRun, StopReason
from workers.engine import Engine, EngineRequest
from workers.feed import Feed
from workers.pace import Pace
from workers.patience import Patience
from workers.preparation import Preparation
from workers.reuse import Reuse
from workers.writer import Writer

_log = logging.getLogger(__name__)

_SUSPECT_POLL_S = 0.1
# How often a thread that waits to claim looks whether the worker drains.
_HUNGER_POLL_S = 0.1
# How often a chunk that waits for the engine looks whether that is alive.
_ENGINE_POLL_S = 1.0


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
        self._only_job_id = only_job_id
        self._on_engine_death = on_engine_death
        self._lock = threading.Lock()
        self._runs: dict[str, ChunkRun] = {}
        self._num_busy = 0
        self._claiming = threading.Condition()
        self._has_suspect = False
        self._draining = threading.Event()
        self._patiently = Patience(self._draining.is_set)
        self.pace = Pace()
        reuse = Reuse(database, self._patiently, self.runs)
        self._preparation = Preparation(database, self._patiently, worker_id, engine, reuse, feed.new_key)
        self._writer = Writer(
            database, settings.flush_s, self._patiently, self.runs, self.pace, after_flush=reuse.settle
        )
        self._writer.start()

    def close(self) -> None:
        """End the thread that writes; call it when no thread is in `work` any more."""
        self._writer.stop()

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
                lease = self._patiently(self._claims())
            except DatabaseUnavailableError:
                return None  # the worker drains, and will not wait for it
            self._has_suspect = lease is not None and lease.is_suspect
            if lease is not None:
                self._feed.expect(lease.lease_id, lease.num_requests)
        return lease

    def _claims(self) -> Callable[[], Lease | None]:
        """One claim, to be called again when the database was away: a claim that went through while its answer was
        lost is found, or its chunk would stand still until its lease expires."""
        lease_id: str | None = None

        def claim() -> Lease | None:
            nonlocal lease_id
            if lease_id is not None and (lease := leases.find(self._database, lease_id)) is not None:
                return lease
            lease_id = leases.new_lease_id()
            return leases.claim(
                self._database,
                self._worker_id,
                self._card_name,
                self._settings.lease_s,
                self._only_job_id,
                lease_id,
            )

        return claim

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
        if run.stop_reason is None:
            pending = self._patiently(lambda: leases.load_requests(self._database, run.lease))
            prepared = self._preparation.prepare(run.lease, pending)
            run.begin(prepared.results, prepared.flights, prepared.twins)
            self._hand_in(run, [flight.request for flight in prepared.flights])
            self._feed.arrived(run.lease.lease_id)
            try:
                if self._is_done(run):
                    return
            finally:
                self._feed.abort(run.unfinished())
        if run.stop_reason is StopReason.ENGINE_DEAD:
            raise EngineError("the engine died")
        self._patiently(lambda: leases.release(self._database, run.lease))

    def _is_done(self, run: ChunkRun) -> bool:
        """Wait until the chunk is done, its results written; False when it has to stop before, with what is finished
        written all the same."""
        while True:
            while not run.wait(_ENGINE_POLL_S):
                if self._feed.is_dead:
                    run.stop(StopReason.ENGINE_DEAD)
            if run.stop_reason is StopReason.LEASE_LOST:
                raise LeaseLostError(f"the lease on chunk {run.lease.chunk_id} is lost")
            if run.error is not None:
                raise run.error
            if self._writer.write(run):
                return True
            if self._feed.is_dead:
                run.stop(StopReason.ENGINE_DEAD)
            if run.stop_reason is not None:
                return False
            self._hand_in(run, run.take_due(self._feed.new_key))

    def _hand_in(self, run: ChunkRun, requests: Sequence[EngineRequest]) -> None:
        self._feed.submit(requests, run.deliver, priority=run.lease.priority)
