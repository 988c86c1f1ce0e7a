"""Feeding the engine: one thread that owns it, and keeps requests waiting in it so that it never drains."""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from db.errors import EngineError
from workers.engine import Completion, Engine, EngineRequest, Failure

# A forward pass takes seconds, the first one of a large model perhaps a minute.
MAX_STEP_S = 300.0

_log = logging.getLogger(__name__)

Outcome = Completion | Failure


@dataclass(frozen=True)
class _Entry:
    request: EngineRequest
    deliver: Callable[[Outcome], None]


class Feed:
    """The engine's thread. `submit` and `abort` may be called from any other.

    Requests wait here, first come first served, and move into the engine while it holds fewer than it can run plus
    as many again. So a chunk that ends never leaves it with too little to batch, and an abort finds most of its
    requests still out here.
    """

    def __init__(self, create: Callable[[], Engine]) -> None:
        self._create = create
        self._engine: Engine | None = None
        self._changed = threading.Condition()
        self._waiting: deque[_Entry] = deque()
        self._aborts: list[int] = []
        self._entries: dict[int, _Entry] = {}
        self._keys = itertools.count()
        self._is_stopping = False
        self._error: BaseException | None = None
        self._step_began_at: float | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to load the engine."""
        self._thread.start()

    def wait_ready(self, timeout_s: float | None = None) -> Engine | None:
        """The engine once it is loaded, None at the timeout; EngineError when it cannot be, or has died since."""
        if not self._ready.wait(timeout_s):
            return None
        if self._error is not None:
            raise EngineError(f"the engine is dead: {self._error}") from self._error
        return self._engine

    def check(self) -> None:
        """Take the engine for dead when it says so, or when one step takes far too long: vLLM's own process may be
        gone while a step waits for its answer for ever."""
        engine, since = self._engine, self._step_began_at
        if engine is None or self._error is not None:
            return
        if engine.is_dead or (since is not None and time.monotonic() - since > MAX_STEP_S):
            with self._changed:
                self._error = EngineError("the engine is gone, or hangs")

    @property
    def is_dead(self) -> bool:
        return self._error is not None

    def new_key(self) -> int:
        return next(self._keys)

    def submit(self, requests: Sequence[EngineRequest], deliver: Callable[[Outcome], None]) -> None:
        """Queue requests. `deliver` is called once for each, on the engine's thread, unless it is aborted.

        EngineError when the engine is dead.
        """
        with self._changed:
            if self._error is not None or self._is_stopping:
                raise EngineError("the engine is not running")
            for request in requests:
                entry = _Entry(request, deliver)
                self._entries[request.key] = entry
                self._waiting.append(entry)
            self._changed.notify()

    def abort(self, keys: Sequence[int]) -> None:
        """Forget requests; an outcome that is on its way may still be delivered."""
        with self._changed:
            self._aborts += [key for key in keys if self._entries.pop(key, None) is not None]
            self._changed.notify()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Drop everything and close the engine."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._error is None:  # a dead engine may hang its thread for ever
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            engine = self._engine = self._create()
            self._ready.set()
            while self._admit(engine):
                if engine.num_unfinished == 0:
                    continue  # all aborted or refused: vLLM's step would wait for an output that never comes
                self._step_began_at = time.monotonic()
                outcomes = engine.step()
                self._step_began_at = None
                for outcome in outcomes:
                    entry = self._entries.pop(outcome.key, None)
                    if entry is not None:
                        entry.deliver(outcome)
            engine.close()
        except BaseException as error:
            # The engine's text may quote a request, so the log gets the kind of error only.
            _log.critical("the engine died: %s", type(error).__name__)
            with self._changed:
                self._error = error
        finally:
            self._ready.set()

    def _admit(self, engine: Engine) -> bool:
        """Move aborts and waiting requests into the engine; wait while it has nothing to do. False: stop."""
        with self._changed:
            while not (self._is_stopping or self._waiting or self._aborts or engine.num_unfinished):
                self._changed.wait()
            if self._is_stopping:
                return False
            aborts, self._aborts = self._aborts, []
            room = 2 * engine.num_seqs - engine.num_unfinished
            entries = [self._waiting.popleft() for _ in range(min(max(room, 0), len(self._waiting)))]
        if aborts:
            engine.abort(aborts)
        for entry in entries:
            if entry.request.key in self._entries:
                self._add(engine, entry)
        return True

    def _add(self, engine: Engine, entry: _Entry) -> None:
        try:
            engine.add(entry.request)
        except ValueError as error:
            self._entries.pop(entry.request.key, None)
            entry.deliver(Failure(entry.request.key, f"the engine refuses it: {error}"))
