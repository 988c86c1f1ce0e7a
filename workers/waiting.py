"""What waits for the engine, and in which order it goes in. The feed has the lock: this has none."""

import bisect
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest

from workers.engine import Completion, EngineRequest, Failure

Outcome = Completion | Failure

# Prompts that begin with so many equal tokens are kin. vLLM caches prompts by whole blocks, of 16 tokens on a GPU and
# of 128 on a CPU; and what is shorter is computed again in no time.
_KIN_TOKENS = 128
_TOKEN_BYTES = array("i").itemsize
_KIN_BYTES = _KIN_TOKENS * _TOKEN_BYTES


@dataclass(frozen=True, slots=True)
class Entry:
    """A request that waits. `order` is its token ids as bytes: sorted, prompts that begin alike lie together."""

    request: EngineRequest
    deliver: Callable[[Outcome], None]
    priority: int
    order: bytes = field(repr=False)

    @classmethod
    def of(cls, request: EngineRequest, deliver: Callable[[Outcome], None], priority: int) -> "Entry":
        return cls(request, deliver, priority, array("i", request.prompt.token_ids).tobytes())

    @property
    def kin(self) -> bytes:
        """What it has in common with its kin; empty if it is too short to have any."""
        return self.order[:_KIN_BYTES] if len(self.order) >= _KIN_BYTES else b""

    def num_new_tokens(self, before: "Entry | None") -> int:
        """Prompt tokens that the engine has to compute if it has those of `before`; in whole blocks."""
        size = len(self.order)
        shared = 0
        if before is not None:
            while shared < size and self.order[shared:][:_KIN_BYTES] == before.order[shared:][:_KIN_BYTES]:
                shared += _KIN_BYTES
        return max(0, size - shared) // _TOKEN_BYTES


# The number says how many came before it, and tells twins apart.
_Place = tuple[bytes, int, Entry]


class _Line:
    """The entries of one priority."""

    def __init__(self) -> None:
        self._by_prompt: list[_Place] = []
        self._by_age: deque[_Place] = deque()
        self._places: dict[int, _Place] = {}
        self._last: _Place | None = None

    def __len__(self) -> int:
        return len(self._by_prompt)

    def add(self, entry: Entry, number: int) -> None:
        place = (entry.order, number, entry)
        bisect.insort(self._by_prompt, place)
        self._by_age.append(place)
        self._places[entry.request.key] = place

    def remove(self, key: int) -> Entry:
        place = self._places.pop(key)
        del self._by_prompt[bisect.bisect_left(self._by_prompt, place)]
        return place[2]

    def entries(self) -> list[Entry]:
        return [entry for _, _, entry in self._places.values()]

    def next(self, oldest_number: int, warm: Mapping[bytes, Entry]) -> Entry:
        """The next of the kin of the one that went last, else one of the kin of others that are `warm`, else the
        oldest; also if that came before `oldest_number`."""
        while self._by_age[0][2].request.key not in self._places:
            self._by_age.popleft()
        _, number, oldest = self._by_age[0]
        if number < oldest_number:
            return oldest
        if self._last is not None and (entry := self._neighbour(self._last, self._last[2].kin)) is not None:
            return entry
        for kin in warm:
            if (entry := self._neighbour((kin,), kin)) is not None:
                return entry
        return oldest

    def _neighbour(self, place: _Place | tuple[bytes], kin: bytes) -> Entry | None:
        """One of these kin: the first that is sorted behind `place`, else the last before it."""
        if kin:
            at = bisect.bisect_right(self._by_prompt, place)
            for _, _, entry in self._by_prompt[at : at + 1] + self._by_prompt[max(0, at - 1) : at]:
                if entry.kin == kin:
                    return entry
        return None

    def take(self, key: int) -> Entry:
        self._last = self._places[key]
        return self.remove(key)


class Waiting:
    """Requests in the order: the highest priority, then one after another those whose prompts begin alike, so that
    the engine's prefix cache serves them, then first come first served. So none without kin is overtaken but by kin.
    A family whose beginning is in the cache goes before one that has to be computed: it may be gone by its turn.

    None is passed over more than `patience` times for the kin of others.
    """

    def __init__(self) -> None:
        self._lines: dict[int, _Line] = {}
        self._priorities: dict[int, int] = {}
        self._families: Counter[bytes] = Counter()
        self._num_kindred = 0
        self._num_added = 0
        self.num_tokens = 0
        self.patience = 1024

    def __len__(self) -> int:
        return len(self._priorities)

    @property
    def is_kindred(self) -> bool:
        """Whether most of what waits has kin that waits too."""
        return 2 * self._num_kindred > len(self)

    def add(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            line = self._lines.setdefault(entry.priority, _Line())
            line.add(entry, self._num_added)
            self._num_added += 1
            self._priorities[entry.request.key] = entry.priority
            self._count(entry, 1)

    def discard(self, key: int) -> None:
        """Forget a request; nothing happens if it does not wait."""
        if (priority := self._priorities.get(key)) is not None:
            self._forget(self._lines[priority].remove(key))

    def take(
        self,
        number: int,
        inside: Iterable[Entry] = (),
        last_steps: float | None = None,
        num_new_tokens: float = float("inf"),
    ) -> list[Entry]:
        """Up to `number` entries, in order; no further once `num_new_tokens` of their prompts have to be computed.

        What is `inside` the engine keeps its prompts in the cache. With `last_steps`, in how many steps the engine
        could be through with everything: requests that may take longer than that go first, for they would run on
        alone, each followed by its kin.
        """
        # only families that wait: of prompts that are all different, there are as many as are inside
        warm = {entry.kin: entry for entry in inside if entry.kin in self._families}
        taken: list[Entry] = []
        for priority in sorted(self._lines, reverse=True):
            line = self._lines[priority]
            long = self._longest(line, number - len(taken), last_steps)
            while len(line) and len(taken) < number and num_new_tokens > 0:
                entry = line.next(self._num_added - len(self) - self.patience, warm)
                while long and long[0].request.key not in self._priorities:
                    long.popleft()
                if long and _may_go_before(long[0], entry, warm):
                    entry = long.popleft()
                num_new_tokens -= entry.num_new_tokens(warm.get(entry.kin))
                taken.append(line.take(entry.request.key))
                self._forget(entry)
                if entry.kin in self._families:
                    warm[entry.kin] = entry
                else:
                    warm.pop(entry.kin, None)
        return taken

    def _longest(self, line: _Line, number: int, last_steps: float | None) -> deque[Entry]:
        if last_steps is None:
            return deque()
        long = [entry for entry in line.entries() if entry.request.max_tokens >= last_steps]
        return deque(nlargest(number, long, key=lambda entry: entry.request.max_tokens))

    def _forget(self, entry: Entry) -> None:
        del self._priorities[entry.request.key]
        if not len(self._lines[entry.priority]):
            del self._lines[entry.priority]
        self._count(entry, -1)

    def _count(self, entry: Entry, change: int) -> None:
        self.num_tokens += change * entry.request.max_tokens
        if not (kin := entry.kin):
            return
        before = self._families[kin]
        after = self._families[kin] = before + change
        # the first of a family is no kin to anybody until the second comes
        self._num_kindred += (after if after > 1 else 0) - (before if before > 1 else 0)
        if not after:
            del self._families[kin]


def _may_go_before(long: Entry, entry: Entry, warm: Mapping[bytes, Entry]) -> bool:
    """Whether a long request goes before the one whose turn it is: not where a cached beginning would go unused."""
    is_longer = long.request.max_tokens > entry.request.max_tokens
    return is_longer and (not long.kin or long.kin in warm or entry.kin not in warm)
