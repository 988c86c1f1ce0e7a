"""Firing schedules in a worker: in a thread of its own, since a big file takes long, and one at a time."""

import logging
import threading

from db import schedules
from db.database import Database
from db.errors import PromptmillError
from db.queries import Job
from jobs.firing import fire_next
from jobs.settings import Settings
from workers.tickets import announce

_log = logging.getLogger(__name__)


class Scheduler:
    """Looks, with every sweep, whether anything is due; what is, any worker fires, whatever its card."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._thread: threading.Thread | None = None
        self._is_stopping = False

    def look(self) -> None:
        """One query; a thread begins to fire what it finds."""
        if self._thread is not None and self._thread.is_alive():
            return
        if not self._is_stopping and schedules.list_due(self._database):
            self._thread = threading.Thread(target=self._fire, name="scheduler", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Fire nothing more. What is being fired is not waited for: its lease ends, and another takes it up."""
        self._is_stopping = True

    def _fire(self) -> None:
        try:
            while not self._is_stopping and fire_next(self._database, self._settings, self._announce):
                pass
        except PromptmillError as error:
            _log.warning("scheduler: %s", error)
        except Exception:
            _log.exception("scheduler failed")

    def _announce(self, job: Job) -> None:
        announce(self._settings, job.card_name, job.counts.total)
