"""Requests that ask for the same: one is generated, the others are its twins and take its result.

All of it goes through the database, so that it holds over all workers of a job: a note says which request generates a
key, and its result answers whoever waits. Only what is in an engine, or on its way there, is waited for.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from db import generations
from db.database import Database
from db.errors import DatabaseUnavailableError, LeaseLostError
from db.generations import Note
from db.leases import NewResult
from db.transitions import Lease
from workers.chunk_run import ChunkRun
from workers.patience import Patience

_log = logging.getLogger(__name__)

# Keys that one statement asks for.
_MAX_KEYS = 1_000


@dataclass(frozen=True)
class Plan:
    """What becomes of a chunk's requests: `results` need no engine, those of `twins` wait, all others are generated."""

    results: Sequence[NewResult] = ()
    twins: frozenset[int] = frozenset()


class Reuse:
    """What the chunks of one worker, `runs`, need not generate."""

    def __init__(
        self, database: Database, patience: Patience, runs: Callable[[], Sequence[ChunkRun]]
    ) -> None:
        self._database = database
        self._patience = patience
        self._runs = runs

    def plan(self, lease: Lease, keys: Mapping[int, str], *, is_reusing: bool) -> Plan:
        """For a chunk whose repeatable requests, by index, have these content keys. A suspect one waits for nobody."""
        if not keys or lease.is_suspect:
            return Plan()
        first: dict[str, int] = {}
        for index, key in keys.items():
            first.setdefault(key, index)
        claims = self._patience(
            lambda: generations.claim(self._database, lease, first, is_reusing=is_reusing)
        )
        results, twins = [], set()
        for index, key in keys.items():
            if key in claims.results:
                results.append(replace(claims.results[key], index=index))
            elif key not in claims.failed and not (key in claims.mine and index == first[key]):
                twins.add(index)
        return Plan(results, frozenset(twins))

    def settle(self) -> None:
        """Give every twin what is there by now, or the engine if nobody generates it. Called by the writer's thread
        after it has written."""
        waiting: dict[str, dict[str, list[ChunkRun]]] = {}
        for run in self._runs():
            for key in run.awaited() if run.stop_reason is None else ():
                waiting.setdefault(run.lease.job_id, {}).setdefault(key, []).append(run)
        for job_id, by_key in waiting.items():
            try:
                self._settle_job(job_id, by_key)
            except DatabaseUnavailableError as error:
                _log.warning("%s", error)
                return  # they are asked for again after the next write
            except Exception as error:
                for run in {run for runs in by_key.values() for run in runs}:
                    run.fail(error)

    def _settle_job(self, job_id: str, by_key: Mapping[str, Sequence[ChunkRun]]) -> None:
        left = iter(by_key)
        while keys := list(islice(left, _MAX_KEYS)):
            orphans: dict[ChunkRun, list[Note]] = {}
            for note in generations.look(self._database, job_id, keys):
                if note.result is None:
                    orphans.setdefault(by_key[note.key][0], []).append(note)
                    continue
                for run in by_key[note.key]:
                    run.answer(note.key, note.result)
            for run, notes in orphans.items():
                taken = self._take_over(run, notes)
                for note in notes:
                    if note.has_failed:  # a failure is never taken from another: each finds out for itself
                        for waiting in by_key[note.key]:
                            waiting.generate(note.key)
                    elif note.key in taken:
                        run.generate(note.key, 1)

    def _take_over(self, run: ChunkRun, notes: Sequence[Note]) -> frozenset[str]:
        index_of = run.awaited()
        try:
            return generations.take_over(
                self._database, run.lease, [(note, index_of[note.key]) for note in notes]
            )
        except LeaseLostError:
            return frozenset()  # the run is told by whoever renews the lease
