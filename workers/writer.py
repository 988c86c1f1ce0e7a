"""Writing results: one thread for all chunks of a worker, so that a second's results are one transaction."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from db import leases
from db.database import Database
from db.errors import DatabaseUnavailableError, LeaseLostError
from db.leases import Record
from workers.chunk_run import ChunkRun, StopReason
from workers.pace import Pace
from workers.patience import Patience


class Writer(threading.Thread):
    """Writes what has finished every `flush_s`, calling `after_flush` then, and at once what a slot waits for.

    While the database is away, what finishes waits in its chunk: no more than the chunks in flight hold.
    """

    def __init__(
        self,
        database: Database,
        flush_s: float,
        patience: Patience,
        runs: Callable[[], Sequence[ChunkRun]],
        pace: Pace,
        after_flush: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="writer", daemon=True)
        self._database = database
        self._flush_s = flush_s
        self._patience = patience
        self._runs = runs
        self._pace = pace
        self._after_flush = after_flush
        self._changed = threading.Condition()
        self._asked: dict[ChunkRun, Future[bool]] = {}
        self._is_stopping = False
        self._gave_up: DatabaseUnavailableError | None = None

    def write(self, run: ChunkRun) -> bool:
        """Write what the run has finished, and end its chunk if that was all; whether it was.

        LeaseLostError when the chunk has passed on, DatabaseUnavailableError when the worker drains and would wait
        for the database no longer.
        """
        written: Future[bool] = Future()
        with self._changed:
            self._asked[run] = written
            self._changed.notify()
        return written.result()

    def stop(self) -> None:
        """End once everything that was asked for is written."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()

    def run(self) -> None:
        flush_at = time.monotonic() + self._flush_s
        while (asked := self._wait(flush_at)) is not None:
            due = dict.fromkeys(asked)
            is_flush = time.monotonic() >= flush_at
            if is_flush:
                due.update(dict.fromkeys(self._runs()))
                flush_at = time.monotonic() + self._flush_s
            outcome = self._write(list(due))
            for run in due:
                self._tell(run, outcome[run], asked.get(run))
            if is_flush:
                self._after_flush()

    def _wait(self, until: float) -> dict[ChunkRun, "Future[bool]"] | None:
        """Whoever has asked by now; waits for the first of them, or `until`. None: stop."""
        with self._changed:
            while not self._asked:
                left_s = until - time.monotonic()
                if self._is_stopping:
                    return None
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            asked, self._asked = self._asked, {}
            return asked

    def _write(self, due: Sequence[ChunkRun]) -> dict[ChunkRun, bool | Exception]:
        """For each run whether its chunk is done, or why nothing was written for it."""
        if self._gave_up is not None:
            return dict.fromkeys(due, self._gave_up)
        records = {run: Record(run.lease, run.take(), is_last=run.is_whole) for run in due}
        records = {run: one for run, one in records.items() if one.results or one.is_last}
        outcome: dict[ChunkRun, bool | Exception] = dict.fromkeys(due, False)
        try:
            outcome.update(self._record(records))
        except DatabaseUnavailableError as error:
            self._gave_up = error
            outcome.update(dict.fromkeys(records, error))
        except Exception:
            # One of them is at fault: alone, it harms no other.
            for run, one in records.items():
                try:
                    outcome.update(self._record({run: one}))
                except Exception as error:
                    outcome[run] = error
        return outcome

    def _record(self, records: dict[ChunkRun, Record]) -> dict[ChunkRun, bool | Exception]:
        if not records:
            return {}
        attempts = itertools.count()
        lost = self._patience(
            lambda: leases.record(self._database, list(records.values()), is_repeat=next(attempts) > 0)
        )
        for one in records.values():
            if one.lease.lease_id not in lost:
                self._pace.add(leases.tally_of(one.results))
        return {
            run: LeaseLostError(f"the lease on chunk {run.lease.chunk_id} has passed to somebody else")
            if run.lease.lease_id in lost
            else one.is_last
            for run, one in records.items()
        }

    def _tell(self, run: ChunkRun, outcome: bool | Exception, written: "Future[bool] | None") -> None:  # noqa: FBT001  the future's value
        if written is not None:
            if isinstance(outcome, Exception):
                written.set_exception(outcome)
            else:
                written.set_result(outcome)
        elif isinstance(outcome, LeaseLostError):
            run.stop(StopReason.LEASE_LOST)
        elif isinstance(outcome, Exception):
            run.fail(outcome)
