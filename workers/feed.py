"""Feeding the engine: one thread that owns it, and keeps requests waiting in it so that it never drains."""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence

from db.errors import EngineError, SettingsError
from workers.appetite import Appetite, Marks
from workers.engine import Engine, EngineRequest, Failure, RequestRefusedError
from workers.meter import FeedCounters, Meter
from workers.waiting import Entry, Outcome, Waiting

# A forward pass takes seconds, the first one of a large model perhaps a minute.
MAX_STEP_S = 300.0

_log = logging.getLogger(__name__)


class Feed:
    """The engine's thread. Everything else here may be called from any other.

    Requests wait here, in the order of `workers.waiting`, and move into the engine when little waits inside it. So a
    chunk that ends never leaves it with too little to batch, and an abort finds most of its requests still out here.
    """

    def __init__(self, create: Callable[[], Engine]) -> None:
        self._create = create
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting = Waiting()
        self._appetite = Appetite(self._lock, lambda: len(self._waiting), lambda: self._waiting.is_kindred)
        self._meter = Meter()
        self._inside: dict[int, Entry] = {}
        self._aborts: list[int] = []
        self._keys = itertools.count()
        self._is_stopping = False
        self._error: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to load the engine."""
        self._thread.start()

    def wait_ready(self, timeout_s: float | None = None) -> Engine | None:
        """The engine once it is loaded, None at the timeout; EngineError when it cannot be, or has died since, and
        SettingsError when it refuses its arguments."""
        if not self._ready.wait(timeout_s):
            return None
        if isinstance(self._error, SettingsError):
            raise self._error
        if self._error is not None:
            state = "cannot be started" if self._engine is None else "is dead"
            raise EngineError(f"the engine {state}: {self._error}") from self._error
        return self._engine

    def check(self) -> None:
        """Take the engine for dead when it says so, or when one step takes far too long: vLLM's own process may be
        gone while a step waits for its answer for ever."""
        engine, since = self._engine, self._meter.step_began_at
        if engine is None or self._error is not None:
            return
        if engine.is_dead or (since is not None and time.monotonic() - since > MAX_STEP_S):
            with self._lock:
                self._error = EngineError("the engine is gone, or hangs")

    @property
    def is_dead(self) -> bool:
        return self._error is not None

    @property
    def counters(self) -> FeedCounters:
        return self._meter.counters

    def new_key(self) -> int:
        return next(self._keys)

    def wait_hungry(self, timeout_s: float) -> bool:
        """Wait until so little waits here that another chunk is to be claimed; False at the timeout."""
        return self._appetite.wait(timeout_s)

    def expect(self, lease_id: str, num_requests: int) -> None:
        """A chunk is claimed, and its requests will come."""
        with self._lock:
            self._appetite.expect(lease_id, num_requests)
            self._meter.owe()

    def arrived(self, lease_id: str) -> None:
        """The chunk's requests are here, or will not come; a second call does nothing."""
        with self._lock:
            self._appetite.arrived(lease_id)
            self._settle()

    def submit(
        self,
        requests: Sequence[EngineRequest],
        deliver: Callable[[Outcome], None],
        *,
        priority: int = 0,
    ) -> None:
        """Queue requests; those of a higher priority go first. `deliver` is called once for each, on the engine's
        thread, unless it is aborted.

        EngineError when the engine is dead.
        """
        entries = [Entry.of(request, deliver, priority) for request in requests]
        with self._lock:
            if self._error is not None or self._is_stopping:
                raise EngineError("the engine is not running")
            self._waiting.add(entries)
            if entries:
                self._meter.idle_ends()
                self._meter.owe()
            self._changed.notify()

    def abort(self, keys: Sequence[int]) -> None:
        """Forget requests; an outcome that is on its way may still be delivered."""
        with self._lock:
            for key in keys:
                self._waiting.discard(key)
            self._aborts += [key for key in keys if self._inside.pop(key, None) is not None]
            self._appetite.look_again()
            self._changed.notify()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Drop everything and close the engine."""
        with self._lock:
            self._is_stopping = True
            self._changed.notify()
        if self._error is None:  # a dead engine may hang its thread for ever
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            engine = self._engine = self._create()
            self._appetite.marks = Marks(engine.num_seqs)
            self._waiting.patience = self._appetite.marks.patience
            self._ready.set()
            while self._admit(engine):
                num_inside = engine.num_unfinished
                if num_inside == 0:
                    continue  # all aborted or refused: vLLM's step would wait for an output that never comes
                self._meter.step_begins()
                outcomes = engine.step()
                self._meter.step_ends(is_short=num_inside < engine.num_seqs)
                for outcome in outcomes:
                    entry = self._inside.pop(outcome.key, None)
                    if entry is not None:
                        entry.deliver(outcome)
            engine.close()
        except BaseException as error:
            # The engine's text may quote a request, so the log gets the kind of error only.
            if not isinstance(error, SettingsError):
                _log.critical("the engine died: %s", type(error).__name__)
            with self._lock:
                self._error = error
        finally:
            self._ready.set()

    def _admit(self, engine: Engine) -> bool:
        """Move aborts and waiting requests into the engine; wait while it has nothing to do. False: stop."""
        with self._lock:
            while not (self._is_stopping or len(self._waiting) or self._aborts or engine.num_unfinished):
                self._meter.idle_begins()
                self._changed.wait()
                self._meter.idle_ends()
            if self._is_stopping:
                return False
            aborts, self._aborts = self._aborts, []
            entries = self._take(engine)
        if aborts:
            engine.abort(aborts)
        for entry in entries:
            if entry.request.key in self._inside:
                self._add(engine, entry)
        return True

    def _take(self, engine: Engine) -> list[Entry]:
        """What goes in now: nothing while enough waits inside, else as many as fill it up. The caller has the lock."""
        marks = self._appetite.marks
        num_inside = engine.num_unfinished
        if not len(self._waiting) or num_inside - marks.num_seqs >= marks.low_inside:
            return []
        last_steps, num_new_tokens = None, float("inf")
        if self._appetite.is_last:
            # a request inside has half of its tokens before it, on the average
            num_tokens = sum(entry.request.max_tokens for entry in self._inside.values()) / 2
            last_steps = (self._waiting.num_tokens + num_tokens) / marks.num_seqs
        elif self._waiting.is_kindred:
            # A step's worth. Whoever fills the engine with a job's first chunk has it compute every prompt's beginning,
            # and again once their kin is here: that is claimed while the first step runs.
            num_new_tokens = engine.max_num_batched_tokens
        room = marks.num_seqs + marks.high_inside - num_inside
        entries = self._waiting.take(room, self._inside.values(), last_steps, num_new_tokens)
        self._inside.update((entry.request.key, entry) for entry in entries)
        self._meter.refilled(len(entries))
        self._settle()
        self._appetite.look_again()
        return entries

    def _settle(self) -> None:
        if not len(self._waiting) and not self._appetite.is_anything_expected:
            self._meter.settle()

    def _add(self, engine: Engine, entry: Entry) -> None:
        try:
            engine.add(entry.request)
        except ValueError as error:
            self._inside.pop(entry.request.key, None)
            code = error.code if isinstance(error, RequestRefusedError) else "engine_error"
            entry.deliver(Failure(entry.request.key, f"the engine refuses it: {error}", code=code))
