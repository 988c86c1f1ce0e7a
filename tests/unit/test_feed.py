"""The engine's thread: each request is answered once, one bad request fails alone, and a dead engine is noticed."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from servers import wait_until

from db.errors import EngineError
from jobs.cards import Limits
from jobs.generation import Generation
from jobs.rendering import Rendered
from jobs.schema import Problem
from workers.echo_engine import EchoEngine
from workers.engine import Completion, Engine, EngineRequest, Failure
from workers.feed import Feed
from workers.meter import FeedCounters
from workers.waiting import Outcome

TIMEOUT_S = 30.0


class ScriptedEngine:
    """Runs as many steps as the test permits; each finishes what has waited longest, as far as num_seqs goes.

    Like vLLM with its engine in another process, a step without any request would never return: here it fails.
    """

    def __init__(self, num_seqs: int = 2, *, is_free: bool = False) -> None:
        self.inside: list[int] = []
        self.most_inside = 0
        self.num_steps = 0
        self.aborted: list[int] = []
        self.refuses: frozenset[int] = frozenset()
        self.add_error: Exception = ValueError("temperature must be less")
        self.step_error: Exception | None = None
        self.extra: list[Completion | Failure] = []
        self.is_closed = False
        self.is_gone = False
        self.batched_tokens = 1_000
        self.finish_at_once = 0  # or as many as it can run
        self.threads: set[int] = set()
        self._num_seqs = num_seqs
        self._is_free = is_free
        self._permits = threading.Semaphore(0)

    def permit(self, num_steps: int = 1) -> None:
        self._permits.release(num_steps)

    @property
    def details(self) -> dict[str, Any]:
        return {}

    @property
    def label(self) -> str:
        return "scripted"

    @property
    def num_seqs(self) -> int:
        return self._num_seqs

    @property
    def max_num_batched_tokens(self) -> int:
        return self.batched_tokens

    @property
    def num_unfinished(self) -> int:
        return len(self.inside)

    @property
    def is_dead(self) -> bool:
        return self.is_gone

    def render(self, generations: Sequence[Generation], limits: Limits) -> list[Rendered | Problem]:
        raise NotImplementedError

    def add(self, request: EngineRequest) -> None:
        self.threads.add(threading.get_ident())
        if request.key in self.refuses:
            raise self.add_error
        self.inside.append(request.key)
        self.most_inside = max(self.most_inside, len(self.inside))

    def abort(self, keys: Sequence[int]) -> None:
        self.threads.add(threading.get_ident())
        self.aborted += keys
        self.inside = [key for key in self.inside if key not in keys]

    def step(self) -> list[Completion | Failure]:
        self.threads.add(threading.get_ident())
        assert self.inside, "a step with nothing to do"
        if not self._is_free:
            assert self._permits.acquire(timeout=TIMEOUT_S), "the test permits no more steps"
        if self.step_error is not None:
            raise self.step_error
        self.num_steps += 1
        number = self.finish_at_once or self._num_seqs
        finished, self.inside = self.inside[:number], self.inside[number:]
        extra, self.extra = self.extra, []
        return [completion(key) for key in finished] + extra

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.is_closed = True


def completion(key: int) -> Completion:
    return Completion(key, f"answer {key}", None, "stop", 1, 1)


def request(key: int) -> EngineRequest:
    return EngineRequest(key, Rendered("x", [1]), 5, stream=False, sampling={})


def requests(*keys: int) -> list[EngineRequest]:
    return [request(key) for key in keys]


class Box:
    """Where outcomes are delivered to."""

    def __init__(self) -> None:
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

    def put(self, outcome: Outcome) -> None:
        self._outcomes.put(outcome)

    def take(self, number: int) -> list[Outcome]:
        return [self._outcomes.get(timeout=TIMEOUT_S) for _ in range(number)]

    def keys(self, number: int) -> list[int]:
        return [outcome.key for outcome in self.take(number)]

    @property
    def is_empty(self) -> bool:
        return self._outcomes.empty()


MakeFeed = Callable[[Engine], Feed]


@pytest.fixture
def make_feed() -> Iterator[MakeFeed]:
    made: list[tuple[Feed, Engine]] = []

    def make(engine: Engine) -> Feed:
        feed = Feed(lambda: engine)
        feed.start()
        assert feed.wait_ready(TIMEOUT_S) is engine
        made.append((feed, engine))
        return feed

    yield make
    for feed, engine in made:
        if isinstance(engine, ScriptedEngine):
            engine.permit(1_000)
        feed.stop(TIMEOUT_S)


@pytest.fixture
def box() -> Box:
    return Box()


# outcomes


def test_each_request_is_answered_once(make_feed: MakeFeed, box: Box) -> None:
    engine = ScriptedEngine(is_free=True)
    feed = make_feed(engine)
    feed.submit(requests(*range(100)), box.put)
    assert box.take(100) == [completion(key) for key in range(100)]
    assert box.is_empty


def test_what_several_threads_submit_goes_back_to_each(make_feed: MakeFeed) -> None:
    feed = make_feed(ScriptedEngine(num_seqs=8, is_free=True))
    boxes = [Box() for _ in range(8)]
    keys = [[feed.new_key() for _ in range(50)] for _ in boxes]

    def submit(number: int) -> None:
        for key in keys[number]:
            feed.submit(requests(key), boxes[number].put)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert [sorted(box.keys(50)) for box in boxes] == keys


def test_keys_do_not_repeat(make_feed: MakeFeed) -> None:
    feed = make_feed(ScriptedEngine())
    assert len({feed.new_key() for _ in range(1_000)}) == 1_000


def test_the_engine_is_called_from_one_thread_only(make_feed: MakeFeed, box: Box) -> None:
    engine = ScriptedEngine(is_free=True)
    feed = make_feed(engine)
    feed.submit(requests(1, 2, 3), box.put)
    box.take(3)
    feed.abort([1])
    feed.stop(TIMEOUT_S)
    assert len(engine.threads) == 1
    assert engine.threads != {threading.get_ident()}


def test_the_engine_holds_half_a_batch_more_than_it_can_run(make_feed: MakeFeed, box: Box) -> None:
    engine = ScriptedEngine(num_seqs=8, is_free=True)
    make_feed(engine).submit(requests(*range(50)), box.put)
    box.take(50)
    assert engine.most_inside == 12


def _holds(engine: ScriptedEngine, number: int) -> bool:
    return len(engine.inside) == number


def _tell_when_hungry(feed: Feed, hungry: threading.Event) -> None:
    if feed.wait_hungry(TIMEOUT_S):
        hungry.set()


def test_the_engine_is_filled_up_to_the_high_mark_once_less_than_the_low_mark_waits_in_it(
    make_feed: MakeFeed, box: Box
) -> None:
    engine = ScriptedEngine(num_seqs=8)
    feed = make_feed(engine)
    feed.submit(requests(*range(40)), box.put)
    wait_until(lambda: len(engine.inside) == 12, "the engine is full")
    for num_finished, num_inside in ((1, 11), (1, 10), (1, 12)):  # the low mark is 2 beyond the 8 that run
        engine.finish_at_once = num_finished
        engine.permit()
        box.take(num_finished)
        wait_until(partial(_holds, engine, num_inside), f"{num_inside} are inside")
    assert feed.counters.num_refills == 2
    assert feed.counters.num_fed == 15


def test_the_engine_is_filled_up_before_it_drains(make_feed: MakeFeed, box: Box) -> None:
    """A request that ends makes room for the next, whose chunk is another one."""
    engine = ScriptedEngine(num_seqs=2)
    feed = make_feed(engine)
    feed.submit(requests(*range(3)), box.put)
    wait_until(lambda: engine.inside == [0, 1, 2], "the first chunk is inside")
    feed.submit(requests(*range(10, 14)), box.put)
    engine.permit()
    assert box.keys(2) == [0, 1]
    wait_until(lambda: engine.inside == [2, 10, 11], "the second chunk follows")


def test_requests_go_first_come_first_served(make_feed: MakeFeed, box: Box) -> None:
    feed = make_feed(ScriptedEngine(num_seqs=1, is_free=True))
    for key in range(20):
        feed.submit(requests(key), box.put)
    assert box.keys(20) == list(range(20))


def test_a_higher_priority_goes_first(make_feed: MakeFeed, box: Box) -> None:
    engine = ScriptedEngine(num_seqs=1)
    feed = make_feed(engine)
    feed.submit(requests(0, 1, 2, 3), box.put)
    wait_until(lambda: engine.inside == [0, 1], "two are inside")
    feed.submit(requests(10, 11), box.put, priority=5)
    engine.permit(10)
    assert box.keys(6) == [0, 1, 10, 11, 2, 3]


def test_at_the_end_the_longest_go_first(make_feed: MakeFeed, box: Box) -> None:
    engine = ScriptedEngine(num_seqs=2)
    feed = make_feed(engine)
    feed.submit(requests(0, 1, 2), box.put)
    wait_until(lambda: engine.inside == [0, 1, 2], "the engine is full")
    long = replace(request(12), max_tokens=500)
    feed.submit([request(10), request(11), long, request(13)], box.put)
    engine.permit(10)
    assert box.keys(7) == [0, 1, 2, 12, 10, 11, 13]


def test_while_more_may_come_length_does_not_count(make_feed: MakeFeed, box: Box) -> None:
    engine = ScriptedEngine(num_seqs=2)
    feed = make_feed(engine)
    feed.submit(requests(0, 1, 2), box.put)
    wait_until(lambda: engine.inside == [0, 1, 2], "the engine is full")
    feed.expect("lease", 64)
    feed.submit([request(10), request(11), replace(request(12), max_tokens=500)], box.put)
    engine.permit(10)
    assert box.keys(6) == [0, 1, 2, 10, 11, 12]


# claims


def test_while_kin_may_come_a_job_begins_with_a_step_of_prompts(make_feed: MakeFeed, box: Box) -> None:
    """And no more: of a first chunk most families have a few members, and their kin is on its way."""
    engine = ScriptedEngine(num_seqs=8)
    engine.batched_tokens = 600
    feed = make_feed(engine)
    feed.expect("next", 8)
    chunk = [
        replace(request(key), prompt=Rendered("", [key // 2] * 256 + [key]))
        for key in (0, 2, 4, 6, 1, 3, 5, 7)
    ]
    feed.submit(chunk, box.put)
    wait_until(lambda: engine.inside, "a step begins")
    assert engine.inside == [0, 1, 2, 3, 4], "two families of 258 tokens, and what brings it over 600"
    feed.submit([replace(request(8), prompt=Rendered("", [2] * 256 + [8]))], box.put)
    feed.arrived("next")
    engine.permit(8)
    assert box.keys(9) == [0, 1, 2, 3, 4, 5, 8, 6, 7], "the late kin goes beside its own"


def test_a_feed_is_hungry_until_two_batches_wait(make_feed: MakeFeed, box: Box) -> None:
    feed = make_feed(ScriptedEngine(num_seqs=2))
    assert feed.wait_hungry(0)
    feed.submit(requests(*range(3 + 3)), box.put)  # three of them go inside
    wait_until(lambda: feed.counters.num_fed == 3, "the engine is full")
    assert feed.wait_hungry(0)


def test_what_is_claimed_and_on_its_way_counts_as_waiting(make_feed: MakeFeed) -> None:
    feed = make_feed(ScriptedEngine(num_seqs=2))
    feed.expect("lease", 8)
    assert not feed.wait_hungry(0)
    feed.arrived("lease")
    assert feed.wait_hungry(0)
    feed.arrived("lease")


def test_between_the_marks_it_claims_after_a_pause_and_above_them_never(make_feed: MakeFeed) -> None:
    feed = make_feed(ScriptedEngine(num_seqs=2))
    feed.expect("first", 5)
    assert not feed.wait_hungry(0)
    assert feed.wait_hungry(TIMEOUT_S)
    feed.expect("second", 3)
    assert not feed.wait_hungry(0.5)


def test_whoever_waits_to_claim_is_woken_when_the_engine_takes_what_waits(
    make_feed: MakeFeed, box: Box
) -> None:
    engine = ScriptedEngine(num_seqs=2)
    feed = make_feed(engine)
    feed.submit(requests(*range(40)), box.put)
    hungry = threading.Event()
    threading.Thread(target=_tell_when_hungry, args=(feed, hungry), daemon=True).start()
    assert not hungry.wait(0.05)
    engine.permit(30)
    assert hungry.wait(TIMEOUT_S)


def test_an_abort_wakes_whoever_waits_to_claim(make_feed: MakeFeed, box: Box) -> None:
    feed = make_feed(ScriptedEngine(num_seqs=2))
    feed.submit(requests(*range(40)), box.put)
    hungry = threading.Event()
    threading.Thread(target=_tell_when_hungry, args=(feed, hungry), daemon=True).start()
    feed.abort(range(40))
    assert hungry.wait(TIMEOUT_S)


# counters


def test_the_counters_say_what_was_fed_and_how(make_feed: MakeFeed, box: Box) -> None:
    feed = make_feed(ScriptedEngine(num_seqs=4, is_free=True))
    assert feed.counters == FeedCounters()
    feed.submit(requests(*range(14)), box.put)
    box.take(14)
    wait_until(lambda: feed.counters.num_steps == 4, "four steps")
    counters = feed.counters
    assert (counters.num_fed, counters.num_refills) == (14, 3)
    assert 0 < counters.short_s < counters.stepping_s
    assert counters.starved_s == 0
    assert "14 requests fed in 3 refills; 4 steps" in str(counters)


def test_an_engine_that_waits_for_a_claimed_chunk_starves(make_feed: MakeFeed, box: Box) -> None:
    engine = ScriptedEngine(num_seqs=4)
    feed = make_feed(engine)
    feed.expect("lease", 2)
    time.sleep(0.02)
    feed.submit(requests(1, 2), box.put)
    idle_s = feed.counters.idle_s
    assert feed.counters.starved_s >= 0.02
    assert feed.counters.starved_s <= idle_s
    feed.arrived("lease")
    starved_s = feed.counters.starved_s
    engine.permit()
    box.take(2)
    feed.submit(requests(3), box.put)
    engine.permit()
    box.take(1)
    wait_until(lambda: feed.counters.num_steps == 2, "two steps")
    assert feed.counters.idle_s > idle_s, "nothing was there for it"
    assert feed.counters.starved_s == pytest.approx(starved_s, abs=0.01)


def test_an_outcome_that_nobody_waits_for_is_passed_over(make_feed: MakeFeed, box: Box) -> None:
    engine = ScriptedEngine(is_free=True)
    engine.extra = [completion(99), Failure(98, "of long ago")]
    make_feed(engine).submit(requests(1), box.put)
    assert box.keys(1) == [1]
    assert box.is_empty


# one bad request


def test_a_request_that_the_engine_refuses_fails_alone(make_feed: MakeFeed, box: Box) -> None:
    engine = ScriptedEngine(is_free=True)
    engine.refuses = frozenset({2})
    make_feed(engine).submit(requests(1, 2, 3), box.put)
    outcomes = {outcome.key: outcome for outcome in box.take(3)}
    assert outcomes[1] == completion(1)
    assert outcomes[2] == Failure(2, "the engine refuses it: temperature must be less")
    assert outcomes[3] == completion(3)


def test_when_all_are_refused_the_engine_goes_on(make_feed: MakeFeed, box: Box) -> None:
    engine = ScriptedEngine(is_free=True)
    engine.refuses = frozenset({1, 2})
    feed = make_feed(engine)
    feed.submit(requests(1, 2), box.put)
    assert all(isinstance(outcome, Failure) for outcome in box.take(2))
    feed.submit(requests(3), box.put)
    assert box.take(1) == [completion(3)]
    assert not feed.is_dead


def test_a_request_that_the_engine_gives_up_fails_alone(make_feed: MakeFeed, box: Box) -> None:
    engine = ScriptedEngine(num_seqs=1)
    feed = make_feed(engine)
    feed.submit(requests(1, 2), box.put)
    wait_until(lambda: engine.inside == [1, 2], "both are inside")
    engine.inside = [1]
    engine.extra = [Failure(2, "given up")]
    engine.permit()
    assert box.take(2) == [completion(1), Failure(2, "given up")]


# abort


def test_what_is_aborted_is_not_answered_and_leaves_the_engine(make_feed: MakeFeed, box: Box) -> None:
    engine = ScriptedEngine(num_seqs=2)
    feed = make_feed(engine)
    feed.submit(requests(*range(8)), box.put)
    wait_until(lambda: engine.inside == [0, 1, 2], "the first three are inside")
    feed.abort([1, 2, 6])
    engine.permit()  # the step that was going on when the abort came
    assert box.keys(1) == [0]
    wait_until(lambda: 2 in engine.aborted, "the engine forgets")
    engine.permit(10)
    assert sorted(box.keys(4)) == [3, 4, 5, 7]
    assert box.is_empty


def test_aborting_all_leaves_an_idle_engine_that_takes_the_next(make_feed: MakeFeed, box: Box) -> None:
    engine = ScriptedEngine(num_seqs=1)
    feed = make_feed(engine)
    feed.submit(requests(0, 1, 2, 3, 4), box.put)
    wait_until(lambda: engine.inside == [0, 1], "two are inside")
    feed.abort(range(5))
    engine.permit()
    wait_until(lambda: not engine.inside, "nothing is inside")
    feed.submit(requests(9), box.put)
    engine.permit()
    assert box.keys(1) == [9]
    assert engine.num_steps == 2
    assert not feed.is_dead


def test_aborting_what_is_unknown_or_over_does_nothing(make_feed: MakeFeed, box: Box) -> None:
    engine = ScriptedEngine(is_free=True)
    feed = make_feed(engine)
    feed.submit(requests(1), box.put)
    box.take(1)
    feed.abort([1, 77])
    feed.submit(requests(2), box.put)
    assert box.keys(1) == [2]
    assert engine.aborted == []


# death


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error"), MemoryError(), AssertionError(), SystemExit(1)]
)
def test_an_engine_whose_step_fails_is_dead(make_feed: MakeFeed, box: Box, error: Exception) -> None:
    engine = ScriptedEngine()
    engine.step_error = error
    feed = make_feed(engine)
    feed.submit(requests(1), box.put)
    engine.permit()
    wait_until(lambda: feed.is_dead, "the feed notices")
    with pytest.raises(EngineError, match="not running"):
        feed.submit(requests(2), box.put)
    with pytest.raises(EngineError, match="the engine is dead"):
        feed.wait_ready(0)
    assert box.is_empty
    feed.abort([1])
    feed.stop(TIMEOUT_S)


def test_an_engine_whose_add_fails_otherwise_than_by_refusing_is_dead(make_feed: MakeFeed, box: Box) -> None:
    engine = ScriptedEngine()
    engine.refuses = frozenset({1})
    engine.add_error = RuntimeError("its process is gone")
    feed = make_feed(engine)
    feed.submit(requests(1), box.put)
    wait_until(lambda: feed.is_dead, "the feed notices")


def test_the_log_of_a_death_quotes_nothing(
    make_feed: MakeFeed, box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine()
    engine.step_error = RuntimeError("cannot decode 'my secret prompt'")
    feed = make_feed(engine)
    feed.submit(requests(1), box.put)
    engine.permit()
    wait_until(lambda: feed.is_dead, "the feed notices")
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_an_engine_that_does_not_load_is_an_error_for_all(box: Box) -> None:
    def fail() -> Engine:
        raise EngineError("no weights are in that folder")

    feed = Feed(fail)
    assert feed.wait_ready(0) is None
    feed.start()
    with pytest.raises(EngineError, match="no weights are in that folder"):
        feed.wait_ready(TIMEOUT_S)
    wait_until(lambda: feed.is_dead, "the feed notices")
    with pytest.raises(EngineError, match="not running"):
        feed.submit(requests(1), box.put)
    feed.stop(TIMEOUT_S)


def test_waiting_for_an_engine_that_still_loads_ends_at_the_timeout(box: Box) -> None:
    loading = threading.Event()

    def load() -> Engine:
        loading.wait(TIMEOUT_S)
        return ScriptedEngine(is_free=True)

    feed = Feed(load)
    feed.start()
    assert feed.wait_ready(0.01) is None
    assert not feed.is_dead
    feed.submit(requests(1), box.put)
    loading.set()
    assert box.keys(1) == [1], "what was submitted meanwhile has waited"
    feed.stop(TIMEOUT_S)


# stop


def test_stop_closes_the_engine_and_drops_what_is_left(make_feed: MakeFeed, box: Box) -> None:
    engine = ScriptedEngine(num_seqs=1)
    feed = make_feed(engine)
    feed.submit(requests(0, 1, 2), box.put)
    wait_until(lambda: engine.inside == [0, 1], "two are inside")
    stopper = threading.Thread(target=feed.stop, args=(TIMEOUT_S,))
    stopper.start()
    engine.permit()
    stopper.join(TIMEOUT_S)
    assert engine.is_closed
    assert not feed.is_dead
    with pytest.raises(EngineError, match="not running"):
        feed.submit(requests(3), box.put)
    assert engine.num_steps <= 1


def test_stop_ends_an_idle_feed_and_may_be_called_again(make_feed: MakeFeed) -> None:
    engine = ScriptedEngine()
    feed = make_feed(engine)
    feed.stop(TIMEOUT_S)
    feed.stop(TIMEOUT_S)
    assert engine.is_closed


def test_the_echo_engine_answers_through_the_feed(make_feed: MakeFeed, box: Box) -> None:
    feed = make_feed(EchoEngine(num_seqs=4, latency_s=0))
    prompts = [
        EngineRequest(key, Rendered(f"say {key}", [1, 2]), 10, stream=False, sampling={}) for key in range(20)
    ]
    feed.submit(prompts, box.put)
    answers = {outcome.key: outcome for outcome in box.take(20)}
    assert answers[7] == Completion(7, "say 7", None, "stop", 2, 2)
    assert len(answers) == 20


def test_an_engine_whose_process_is_gone_is_noticed_while_a_step_waits_for_it() -> None:
    engine = ScriptedEngine()
    feed = Feed(lambda: engine)
    feed.start()
    feed.wait_ready()
    feed.check()
    assert not feed.is_dead
    engine.is_gone = True
    feed.check()
    assert feed.is_dead
    with pytest.raises(EngineError, match="gone, or hangs"):
        feed.wait_ready()
    engine.permit()
