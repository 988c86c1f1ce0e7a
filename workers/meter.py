"""How busy the engine is kept, in counters that cost next to nothing."""

import time
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class FeedCounters:
    """What a feed has done so far; times are in seconds.

    stepping  inside the engine's steps
    short     in steps that ran fewer requests than the engine could
    idle      with nothing in the engine
    starved   the part of short and idle in which requests waited outside, or a claimed chunk was on its way
    """

    num_steps: int = 0
    num_fed: int = 0
    num_refills: int = 0
    stepping_s: float = 0.0
    short_s: float = 0.0
    idle_s: float = 0.0
    starved_s: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.num_fed:,} requests fed in {self.num_refills:,} refills; {self.num_steps:,} steps in"
            f" {self.stepping_s:.1f} s, {self.short_s:.1f} s of it short of requests; idle for {self.idle_s:.1f} s;"
            f" starved for {self.starved_s:.2f} s"
        )


class Meter:
    """One feed's counters. `owe` and `settle` say when work is about that the engine has not got."""

    def __init__(self) -> None:
        self.counters = FeedCounters()
        self._step_began_at: float | None = None
        self._idle_since: float | None = None
        self._owed_since: float | None = None

    @property
    def step_began_at(self) -> float | None:
        """When the step that is going on began; None between two."""
        return self._step_began_at

    def refilled(self, num_requests: int) -> None:
        old = self.counters
        self.counters = replace(old, num_fed=old.num_fed + num_requests, num_refills=old.num_refills + 1)

    def step_begins(self) -> None:
        self._step_began_at = time.monotonic()

    def step_ends(self, *, is_short: bool) -> None:
        began_at, self._step_began_at = self._step_began_at, None
        if began_at is None:
            return
        took_s = time.monotonic() - began_at
        old = self.counters
        self.counters = replace(
            old,
            num_steps=old.num_steps + 1,
            stepping_s=old.stepping_s + took_s,
            short_s=old.short_s + (took_s if is_short else 0.0),
            starved_s=old.starved_s + (self._owed_s(began_at) if is_short else 0.0),
        )

    def idle_begins(self) -> None:
        self._idle_since = time.monotonic()

    def idle_ends(self) -> None:
        """Called as soon as there is work again; a second call does nothing."""
        since, self._idle_since = self._idle_since, None
        if since is None:
            return
        old = self.counters
        self.counters = replace(
            old,
            idle_s=old.idle_s + time.monotonic() - since,
            starved_s=old.starved_s + self._owed_s(since),
        )

    def owe(self) -> None:
        """Work is about, or on its way."""
        if self._owed_since is None:
            self._owed_since = time.monotonic()

    def settle(self) -> None:
        """The engine has all the work there is."""
        self._owed_since = None

    def _owed_s(self, since: float) -> float:
        return 0.0 if self._owed_since is None else time.monotonic() - max(since, self._owed_since)
