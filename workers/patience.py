"""Waiting for a database that is away."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from db.errors import DatabaseUnavailableError

_Value = TypeVar("_Value")

_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 5.0
# How long a stopping worker tries to write to a database that is away.
_STOP_WRITE_S = 5.0

_log = logging.getLogger(__name__)


class Patience:
    """Calls again while the database is away, with growing pauses, and says what it waits for.

    A worker that drains gives up after a few seconds, with the DatabaseUnavailableError: then its leases expire, and
    only what was not written runs again.
    """

    def __init__(self, is_draining: Callable[[], bool]) -> None:
        self._is_draining = is_draining

    def __call__(self, call: Callable[[], _Value]) -> _Value:
        pause_s = _FIRST_PAUSE_S
        give_up_at: float | None = None
        while True:
            try:
                return call()
            except DatabaseUnavailableError as error:
                if self._is_draining():
                    give_up_at = give_up_at or time.monotonic() + _STOP_WRITE_S
                    if time.monotonic() > give_up_at:
                        raise
                _log.warning("%s; trying again in %.1f s", error, pause_s)
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, _MAX_PAUSE_S)
