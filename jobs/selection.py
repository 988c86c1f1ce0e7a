"""Which requests of its input a job takes: a shard, of that a sample, and of that the first ones."""

import heapq
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

from db.errors import SettingsError

_SHARD = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
_SAMPLE = re.compile(r"([0-9]{1,12})|([0-9]{1,3}(?:\.[0-9]{1,6})?)%")

T = TypeVar("T")


class Taker(Protocol):
    def take(self, block: Sequence[T]) -> list[T]:
        """Of the input's next requests those that are taken."""
        ...


@dataclass(frozen=True)
class Selection:
    """`shard` (i, n): every n-th request from the i-th on, counted from 1. `num_sampled` or `percent`: a sample, drawn
    by `seed`. `limit`: only the first ones of what is left."""

    shard: tuple[int, int] | None = None
    num_sampled: int | None = None
    percent: float | None = None
    seed: int = 0
    limit: int | None = None

    @property
    def is_sampled(self) -> bool:
        return self.num_sampled is not None or self.percent is not None

    @property
    def text(self) -> str | None:
        """As the job keeps it, a JSON object; None takes everything."""
        said: dict[str, str | int] = {}
        if self.shard is not None:
            said["shard"] = f"{self.shard[0]}/{self.shard[1]}"
        if self.num_sampled is not None:
            said["sample"] = self.num_sampled
        if self.percent is not None:
            said["sample"] = f"{self.percent:.9g}%"
        if self.is_sampled:
            said["seed"] = self.seed
        if self.limit is not None:
            said["limit"] = self.limit
        return json.dumps(said) if said else None


def selection_of(
    shard: str | None = None, sample: str | None = None, limit: int | None = None, seed: int | None = None
) -> Selection:
    """The options as they were given. SettingsError for what is none; without a seed it is 0."""
    num_sampled, percent = (None, None) if sample is None else _parse_sample(sample)
    return Selection(None if shard is None else _parse_shard(shard), num_sampled, percent, seed or 0, limit)


def _parse_shard(text: str) -> tuple[int, int]:
    found = _SHARD.fullmatch(text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise SettingsError(f"--shard {text}: give i/n, like 1/4 for the first of four")
    return int(found[1]), int(found[2])


def _parse_sample(text: str) -> tuple[int | None, float | None]:
    found = _SAMPLE.fullmatch(text)
    if found is not None and found[1] is not None and int(found[1]) > 0:
        return int(found[1]), None
    if found is not None and found[2] is not None and 0 < float(found[2]) <= 100:
        return None, float(found[2])
    raise SettingsError(f"--sample {text}: give a number of requests, like 500, or a share of them, like 5%")


def describe_selection(text: str) -> str:
    """What `Selection.text` gave, for people: `shard 1/2, sample 5%, seed 0`."""
    return ", ".join(f"{name} {value}" for name, value in json.loads(text).items())


class Counter:
    """Takes none of the requests, and counts them."""

    def __init__(self) -> None:
        self.num_seen = 0

    def take(self, block: Sequence[T]) -> list[T]:
        self.num_seen += len(block)
        return []


class Picker:
    """Takes what a selection says, of requests that come in their order.

    Each request has a number from 0 to 1, drawn by the seed and its place in the input. A sample are those with the
    lowest numbers. So the shards' samples of 5% are together the input's, and a larger sample holds the smaller one.
    """

    def __init__(self, selection: Selection, num_requests: int = 0) -> None:
        """`num_requests` is how many there are in all; it counts only for a `num_sampled`."""
        self.num_seen = 0
        self._first, self._step = selection.shard or (1, 1)
        self._draw = _drawer(selection.seed) if selection.is_sampled else None
        self._bound = (selection.percent or 0) / 100
        if selection.num_sampled is not None:
            self._bound = _bound(selection, num_requests)
        self._num_left = selection.limit
        self.num_taken = 0

    @property
    def is_done(self) -> bool:
        """Whether none of those to come is taken."""
        return self._num_left is not None and self.num_taken >= self._num_left

    def take(self, block: Sequence[T]) -> list[T]:
        places: Sequence[int] = range((self._first - 1 - self.num_seen) % self._step, len(block), self._step)
        self.num_seen += len(block)
        if self._draw is not None:
            draws = [self._draw() for _ in block]
            places = [place for place in places if draws[place] < self._bound]
        if self._num_left is not None:
            places = places[: self._num_left - self.num_taken]
        self.num_taken += len(places)
        return [block[place] for place in places]


def _drawer(seed: int) -> Callable[[], float]:
    # by text, since a number and its negative are one seed; Python keeps what random() returns from release to release
    return random.Random(f"sample {seed}").random  # noqa: S311  no secret


def _bound(selection: Selection, num_requests: int) -> float:
    """What just `num_sampled` of the shard's numbers are below."""
    draw = _drawer(selection.seed)
    first, step = selection.shard or (1, 1)
    draws = islice((draw() for _ in range(num_requests)), first - 1, None, step)
    # negative, since a heap gives the lowest: one more than are wanted, of which the highest is the bound
    lowest = [-number for number in islice(draws, (selection.num_sampled or 0) + 1)]
    if len(lowest) <= (selection.num_sampled or 0):
        return 1.0
    heapq.heapify(lowest)
    for number in draws:
        if -number > lowest[0]:
            heapq.heapreplace(lowest, -number)
    return -lowest[0]
