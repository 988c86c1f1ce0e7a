"""What a worker has written, and how fast: counted by the writer, told by each heartbeat."""

import threading
import time
from collections import deque
from collections.abc import Callable

from db.leases import Progress
from db.transitions import Tally

_WINDOW_S = 60.0


class Pace:
    """The rate is that of the last minute, or since the start where that is shorter."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._written = Tally()
        # what was written by when, at each reading of the last minute, and at the last one before
        self._readings = deque([(clock(), 0)])

    def add(self, written: Tally) -> None:
        with self._lock:
            self._written += written

    def read(self) -> Progress:
        with self._lock:
            now, num_tokens = self._clock(), self._written.completion_tokens
            while len(self._readings) > 1 and now - self._readings[1][0] >= _WINDOW_S:
                self._readings.popleft()
            began_at, num_before = self._readings[0]
            self._readings.append((now, num_tokens))
            rate = (num_tokens - num_before) / (now - began_at) if now > began_at else 0.0
            return Progress(self._written.num_results, num_tokens, rate)
