"""Regular expressions that came as data, each searched for a bounded time."""

import re
import signal
import time
import warnings
from types import FrameType
from typing import Self

# What a search may take of the processor's time. A pattern that took longer is not tried again, and after so many of
# them none is.
_LIMIT_S = 0.5
_MAX_SLOW = 10
_MAX_PATTERN_CHARS = 1_000
_MAX_TEXT_CHARS = 32_768


class _TooSlowError(Exception):
    pass


class PatternSearch:
    """A context manager, for the main thread alone: it takes SIGVTALRM, which Python's matcher heeds.

    The limit is of the processor's time and not of the clock's, so that a busy machine changes no score.
    """

    def __init__(self) -> None:
        self._slow: set[str] = set()

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGVTALRM, _stop)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGVTALRM, self._before)

    @property
    def num_slow(self) -> int:
        return len(self._slow)

    def is_found(self, pattern: str, text: str) -> bool | None:
        """Whether the pattern occurs in the text. None where that cannot be said: either is too long, the pattern is
        none, or it takes too long."""
        if len(pattern) > _MAX_PATTERN_CHARS or len(text) > _MAX_TEXT_CHARS:
            return None
        if pattern in self._slow or len(self._slow) >= _MAX_SLOW:
            return None
        began = time.process_time()
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, _LIMIT_S)
            try:
                found = _compiled(pattern).search(text) is not None
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except _TooSlowError:
            self._slow.add(pattern)
            return None
        except (re.error, RecursionError, OverflowError):
            return None
        # the matcher does not look up at every moment
        if time.process_time() - began > 2 * _LIMIT_S:
            self._slow.add(pattern)
        return found


def _compiled(pattern: str) -> re.Pattern[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they would quote the pattern
        return re.compile(pattern)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise _TooSlowError
