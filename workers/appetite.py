"""When a worker claims another chunk: the marks that the engine's queue is kept between."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

# Between the low and the high mark a worker claims only so often: one whose engine runs dry comes before it.
_PAUSE_S = 0.25

# Chunks in flight take longer than as many requests one after the other would: some requests are long, and an order
# that is not that of their arrival spreads a chunk's over a longer time.
NUM_BATCHES_IN_FLIGHT = 20


@dataclass(frozen=True)
class Marks:
    """How many requests wait where. All follow from how many the engine runs at once.

    Inside the engine, beyond what runs: between `low_inside` and `high_inside`. Enough that a step in which many end
    is followed by a full one, and no more, since neither the order of what waits nor an abort reaches them there.
    Outside: under `low` a chunk is claimed at once, for the engine must have work while the next one is rendered.
    Under `high` one is claimed as well: at a job's end the longest go first, and of more there is more to choose
    from. But what waits here no other worker can take. Under `kindred` where most prompts begin like others: the more
    of them are here, the more go in side by side.
    """

    num_seqs: int

    @property
    def low_inside(self) -> int:
        return max(1, self.num_seqs // 4)

    @property
    def high_inside(self) -> int:
        return max(1, self.num_seqs // 2)

    @property
    def low(self) -> int:
        return 2 * self.num_seqs

    @property
    def high(self) -> int:
        return 4 * self.num_seqs

    @property
    def kindred(self) -> int:
        return 8 * self.num_seqs

    @property
    def patience(self) -> int:
        """How many others the order may let pass a request."""
        return 32 * self.num_seqs


class Appetite:
    """Who waits to claim, and what is claimed and on its way; `lock` is the feed's, and is held by every caller but
    that of `wait`."""

    def __init__(
        self, lock: threading.Lock, num_waiting: Callable[[], int], is_kindred: Callable[[], bool]
    ) -> None:
        self.marks = Marks(1)
        self._changed = threading.Condition(lock)
        self._num_waiting = num_waiting
        self._is_kindred = is_kindred
        self._expected: dict[str, int] = {}
        self._claimed_at = float("-inf")
        self._num_askers = 0

    @property
    def is_anything_expected(self) -> bool:
        return bool(self._expected)

    @property
    def is_last(self) -> bool:
        """Whether nothing is known that would follow what is here: no chunk is on its way, and nobody would claim."""
        return not self._expected and not self._num_askers

    def expect(self, lease_id: str, num_requests: int) -> None:
        self._expected[lease_id] = num_requests
        self._claimed_at = time.monotonic()

    def arrived(self, lease_id: str) -> None:
        self._expected.pop(lease_id, None)

    def look_again(self) -> None:
        """Less waits than before."""
        if self._num_askers:
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait until another chunk may be claimed; False at the timeout."""
        give_up_at = time.monotonic() + timeout_s
        with self._changed:
            self._num_askers += 1
            try:
                while (claim_at := self._claim_at()) > (now := time.monotonic()):
                    if now >= give_up_at:
                        return False
                    self._changed.wait(min(claim_at, give_up_at) - now)
                return True
            finally:
                self._num_askers -= 1

    def _claim_at(self) -> float:
        """When the next claim is due, as things are now."""
        num_requests = self._num_waiting() + sum(self._expected.values())
        if num_requests < self.marks.low:
            return float("-inf")
        if num_requests < (self.marks.kindred if self._is_kindred() else self.marks.high):
            return self._claimed_at + _PAUSE_S
        return float("inf")
