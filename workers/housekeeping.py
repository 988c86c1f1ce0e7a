"""The two threads beside the runner: one renews leases, the other mends what faults left and tops up tickets.

Threads of our own and not Celery's timers: those stand still while the broker is away, and during a stop.
"""

import logging
import threading
import time
from collections.abc import Callable

from db import leases, queries, recovery
from db.database import Database
from db.errors import DatabaseUnavailableError, PromptmillError, UnavailableError
from jobs.settings import Settings
from workers.chunk_run import StopReason
from workers.runner import Runner
from workers.scheduler import Scheduler
from workers.tickets import TicketOffice

# After an outage of the database expired leases are left alone for this many lease times.
_SPARE_LEASES = 1.5

_log = logging.getLogger(__name__)


class _Periodic(threading.Thread):
    """Calls `step` at once and then every `interval_s`, whatever it raises, until `stop`."""

    def __init__(self, name: str, interval_s: float, step: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._interval_s = interval_s
        self._step = step
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._step()
            except UnavailableError as error:
                _log.warning("%s: %s", self.name, error)
            except PromptmillError as error:
                _log.error("%s: %s", self.name, error)
            except Exception:
                # A bug here must not end the thread: leases would expire under healthy chunks.
                _log.exception("%s failed", self.name)
            self._stopping.wait(self._interval_s)

    def stop(self, timeout_s: float = 5.0) -> None:
        self._stopping.set()
        if self.is_alive():
            self.join(timeout_s)


class Heartbeat(_Periodic):
    """Renews the leases of the chunks in flight, and stops those that are lost or whose job is being cancelled."""

    def __init__(self, database: Database, settings: Settings, worker_id: str) -> None:
        super().__init__("heartbeat", settings.heartbeat_s, self.run_once)
        self._database = database
        self._lease_s = settings.lease_s
        self._worker_id = worker_id
        self.runner: Runner | None = None

    def run_once(self) -> None:
        if self.runner is not None:
            self.runner.check_engine()
        held = [run.lease for run in self.runner.runs()] if self.runner else []
        progress = self.runner.pace.read() if self.runner else None
        renewal = leases.renew(self._database, self._worker_id, held, self._lease_s, progress)
        if self.runner is not None:
            for lease_id in renewal.lost:
                self.runner.stop_lease(lease_id, StopReason.LEASE_LOST)
            for lease_id in renewal.cancelling:
                self.runner.stop_lease(lease_id, StopReason.CANCELLED)


class Sweeper(_Periodic):
    """Mends the state after faults, sends tickets when there is more to claim than is on its way, and looks whether a
    schedule is due."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        card_name: str,
        runner: Runner,
        tickets: TicketOffice,
        num_slots: int,
        heartbeat: Heartbeat,
        scheduler: Scheduler | None,
    ) -> None:
        super().__init__("sweeper", settings.sweep_s, self.run_once)
        self._database = database
        self._settings = settings
        self._card_name = card_name
        self._runner = runner
        self._tickets = tickets
        self._num_slots = num_slots
        self._heartbeat = heartbeat
        self._scheduler = scheduler
        self._spare_until = float("-inf")

    def run_once(self) -> None:
        lease_s = self._settings.lease_s
        try:
            # After a machine's sleep both threads wake at once: its own healthy leases come first.
            self._heartbeat.run_once()
            recovered = recovery.run_once(
                self._database,
                lease_s,
                self._settings.max_attempts,
                spare_leases=time.monotonic() < self._spare_until,
            )
        except DatabaseUnavailableError:
            # once it is back, every worker first gets the time to renew its leases
            self._spare_until = time.monotonic() + _SPARE_LEASES * lease_s
            raise
        if recovered.did_anything:
            _log.warning("recovered: %s", recovered)
        if self._scheduler is not None and not self._runner.is_draining:
            self._scheduler.look()
        self._top_up()

    def _top_up(self) -> None:
        num_free = self._num_slots - self._runner.num_busy
        if num_free <= 0 or self._runner.is_draining:
            return
        num_claimable = queries.count_claimable(self._database, self._card_name, num_free)
        num_missing = min(num_claimable, num_free) - (self._tickets.num_waiting() if num_claimable else 0)
        if num_missing > 0:
            self._tickets.send(num_missing)
