"""Whatever happens in whatever order, counts add up at every step, and every job ends sound: random walks."""

import contextlib
import random
from collections.abc import Callable

import pytest
from database.rows import (
    CARD,
    LEASE_S,
    cancel,
    expire,
    failure,
    finish_all,
    pass_deadline,
    record,
    register,
    result_rows,
    submit,
    success,
)
from soundness import assert_job_is_sound

from db import leases, queries, recovery, retries
from db.database import Database
from db.errors import LeaseLostError, WrongStateError
from db.transitions import Lease

_NUM_STEPS = 80
_MAX_ATTEMPTS = 2
_WORKERS = ("w1", "w2")


class _Walk:
    """A queue to which anything may happen. Leases are kept after they are lost, as by workers that froze."""

    def __init__(self, database: Database, seed: int) -> None:
        self._database = database
        self._random = random.Random(seed)  # noqa: S311  a test's dice
        self._leases: list[Lease] = []
        self.totals: dict[str, int] = {}
        for worker_id in _WORKERS:
            register(database, worker_id)

    def step(self) -> None:
        steps: list[Callable[[], object]] = [self._claim, self._record, self._record, self._record, self._end]
        rare: list[Callable[[], object]] = [
            self._submit,
            self._release,
            self._renew,
            self._expire,
            self._cancel,
            self._isolate,
            self._die,
            self._pass_deadline,
            self._retry,
        ]
        # what is refused must have changed nothing, and the counts show it
        with contextlib.suppress(LeaseLostError, WrongStateError):
            self._random.choice([*steps, *steps, *rare, self._sweep, self._sweep])()

    def _submit(self) -> None:
        job_id, total = f"job_{len(self.totals)}", self._random.randint(1, 12)
        bad = [index for index in range(total) if self._random.random() < 0.2]
        chunk_size = self._random.randint(1, 5)
        submit(self._database, job_id, num_requests=total, chunk_size=chunk_size, bad=bad)
        self.totals[job_id] = total

    def _claim(self) -> None:
        lease = leases.claim(self._database, self._any_worker(), CARD, LEASE_S)
        if lease is not None:
            self._leases.append(lease)

    def _any_worker(self) -> str:
        return self._random.choice(_WORKERS)

    def _any_lease(self) -> Lease:
        if not self._leases:
            raise LeaseLostError("there was none yet")
        return self._random.choice(self._leases[-4:])

    def _record(self) -> None:
        lease = self._any_lease()
        index = self._random.randrange(lease.first_index, lease.first_index + lease.num_requests)
        made = self._random.choice([success, failure])(index)
        record(self._database, lease, [made], is_last=False, is_repeat=True)

    def _end(self) -> None:
        lease = self._any_lease()
        pending = leases.load_requests(self._database, lease)
        record(self._database, lease, [success(left.index) for left in pending], is_last=True)

    def _release(self) -> None:
        leases.release(self._database, self._any_lease())

    def _renew(self) -> None:
        leases.renew(self._database, "w1", self._leases[-4:], LEASE_S)

    def _expire(self) -> None:
        lease = self._any_lease()
        if not leases.renew(self._database, "w1", [lease], LEASE_S).lost:
            expire(self._database, lease)

    def _sweep(self) -> None:
        recovery.run_once(self._database, LEASE_S, _MAX_ATTEMPTS)

    def _isolate(self) -> None:
        leases.isolate(self._database, self._any_lease())

    def _die(self) -> None:
        recovery.worker_died(self._database, self._any_worker(), _MAX_ATTEMPTS)

    def _pass_deadline(self) -> None:
        if self.totals and self._random.random() < 0.5:
            pass_deadline(self._database, self._random.choice(list(self.totals)))

    def _cancel(self) -> None:
        if self.totals:
            cancel(self._database, self._random.choice(list(self.totals)))

    def _retry(self) -> None:
        if self.totals:
            retries.take_back(self._database, self._random.choice(list(self.totals)), ["engine_error"])

    def drain(self) -> None:
        """Every worker dies, and one more does what is left."""
        renewed = leases.renew(self._database, "w1", self._leases, LEASE_S)
        held = [lease for lease in self._leases if lease.lease_id not in renewed.lost]
        if held:
            expire(self._database, *held)
        self._sweep()
        finish_all(self._database)


@pytest.mark.parametrize("seed", range(6))
def test_a_random_walk_ends_sound(database: Database, seed: int) -> None:
    walk = _Walk(database, seed)
    seen: dict[str, dict[int, object]] = {}
    for _ in range(_NUM_STEPS):
        walk.step()
        for job in queries.list_jobs(database, 100):
            assert job.counts.total == walk.totals[job.id]
    for job_id in walk.totals:
        seen[job_id] = {row["index"]: row for row in result_rows(database, job_id)}
    walk.drain()
    for job_id in walk.totals:
        outcomes = assert_job_is_sound(database, job_id)
        assert len(outcomes) == walk.totals[job_id]
        # what was once stored is never changed
        stored = {row["index"]: row for row in result_rows(database, job_id)}
        assert seen[job_id].items() <= stored.items()
