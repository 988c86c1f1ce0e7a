"""Twins through real runners: what reaches the engine, and that nobody waits for what nobody generates."""

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from servers import wait_until
from soundness import assert_job_is_sound

from db import generations, leases, queries, recovery, transitions
from db.database import Database
from db.errors import DatabaseUnavailableError
from db.outcomes import Outcome
from db.states import ResultStatus
from db.transitions import Lease
from jobs.cards import Card
from jobs.control import cancel
from jobs.rendering import Rendered
from jobs.settings import Settings
from jobs.submit import SubmitOptions, submit
from workers.chunk_run import ChunkRun, Flight, StopReason
from workers.echo_engine import EchoEngine
from workers.engine import Completion, EngineRequest, Failure
from workers.feed import Feed
from workers.patience import Patience
from workers.reuse import Reuse
from workers.runner import Runner

_TIMEOUT_S = 30.0


class CountingEngine(EchoEngine):
    """Echo, which tells what it was given; prompts in `fails` fail so often. It answers once it `may_answer`."""

    def __init__(self, name: str = "echo") -> None:
        super().__init__(64, 0)
        self.seen: Counter[str] = Counter()
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.fails: Counter[str] = Counter()
        self._name = name

    @property
    def details(self) -> dict[str, Any]:
        return {**super().details, "name": self._name}

    def add(self, request: EngineRequest) -> None:
        self.seen[request.prompt.text] += 1
        super().add(request)

    def step(self) -> list[Completion | Failure]:
        if not self.may_answer.wait(0.01):
            return []
        return super().step()

    def _finish(self, request: EngineRequest) -> Completion | Failure:
        if self.fails[request.prompt.text] > 0:
            self.fails[request.prompt.text] -= 1
            return Failure(request.key, "it was told to")
        return super()._finish(request)


class Machine:
    """A worker without its process: an engine, its feed, and threads that run chunks."""

    def __init__(
        self, database: Database, settings: Settings, card: Card, name: str, engine: CountingEngine
    ) -> None:
        self.engine = engine
        self._feed = Feed(lambda: engine)
        self._feed.start()
        assert self._feed.wait_ready(_TIMEOUT_S) is not None
        with database.write() as tx:
            transitions.register_worker(tx, name, card.name, "echo", "host", 1)
        self.runner = Runner(database, settings, card.name, name, self._feed, engine)
        self._threads: list[threading.Thread] = []

    def start(self, num_slots: int = 4) -> None:
        self._threads = [threading.Thread(target=self.runner.work, daemon=True) for _ in range(num_slots)]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(_TIMEOUT_S)
            assert not thread.is_alive(), "a slot does not end"

    def close(self) -> None:
        self.runner.drain()
        self.engine.may_answer.set()
        self.wait()
        self.runner.close()
        self._feed.stop()


Start = Callable[..., Machine]
Submit = Callable[..., str]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"flush_s": 0.02, "chunk_num_requests": 8})


@pytest.fixture
def machine(sqlite_database: Database, settings: Settings, card: Card) -> Iterator[Start]:
    made: list[Machine] = []

    def start(engine: CountingEngine | None = None, *, num_slots: int = 4, held: bool = False) -> Machine:
        engine = engine or CountingEngine()
        if held:
            engine.may_answer.clear()
        made.append(Machine(sqlite_database, settings, card, f"w{len(made)}", engine))
        made[-1].start(num_slots)
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def hand_in(sqlite_database: Database, settings: Settings, card: Card, write: Any) -> Submit:
    """Stores prompts, or whole requests, as a job; greedy unless `sampling` says otherwise."""

    def run(requests: Sequence[str | dict[str, Any]], *, sampling: Any = None, reuse: bool = False) -> str:
        lines = [{"prompt": one} if isinstance(one, str) else one for one in requests]
        chosen = {"temperature": 0} if sampling is None else sampling
        options = SubmitOptions(sampling=chosen, reuse=reuse)
        return submit(sqlite_database, settings, card, str(write(*lines)), options).job.id

    return run


def _generated(outcomes: Sequence[Outcome]) -> list[int]:
    return [one.index for one in outcomes if one.reused_from is None]


def test_of_identical_requests_one_reaches_the_engine(
    sqlite_database: Database, machine: Start, hand_in: Submit
) -> None:
    prompts = [f"say {number % 10} again" for number in range(200)]
    job_id = hand_in(prompts)
    one = machine()
    one.wait()
    outcomes = assert_job_is_sound(sqlite_database, job_id)
    assert one.engine.seen == Counter(dict.fromkeys(prompts, 1))
    assert [one.result for one in outcomes] == [f'{{"response":"{prompt}"}}' for prompt in prompts]
    generated = _generated(outcomes)
    assert len(generated) == 10
    assert {outcome.reused_from for outcome in outcomes} == {None, *(f"{job_id}:{n}" for n in generated)}
    job = queries.get_job(sqlite_database, job_id)
    assert (job.num_reused, job.completion_tokens) == (190, 30)


def test_two_workers_share_what_is_generated(
    sqlite_database: Database, machine: Start, hand_in: Submit
) -> None:
    job_id = hand_in([f"say {number % 10}" for number in range(200)])
    first, second = (machine(num_slots=3, held=True) for _ in range(2))
    wait_until(lambda: first.runner.num_busy == second.runner.num_busy == 3, "both have chunks")
    wait_until(lambda: len(first.runner.runs()) == len(second.runner.runs()) == 3, "all slots run")
    for one in (first, second):
        one.engine.may_answer.set()
    for one in (first, second):
        one.wait()
    assert_job_is_sound(sqlite_database, job_id)
    assert (first.engine.seen + second.engine.seen).total() == 10


def test_requests_that_sample_are_all_generated(
    sqlite_database: Database, machine: Start, hand_in: Submit
) -> None:
    job_id = hand_in(["same"] * 20, sampling={})
    one = machine()
    one.wait()
    assert _generated(assert_job_is_sound(sqlite_database, job_id)) == list(range(20))
    assert one.engine.seen == {"same": 20}


def test_a_seed_of_the_request_s_own_makes_it_like_others(
    sqlite_database: Database, machine: Start, hand_in: Submit
) -> None:
    job_id = hand_in([{"prompt": "same", "seed": number % 2} for number in range(10)], sampling={})
    machine(num_slots=1).wait()
    assert _generated(assert_job_is_sound(sqlite_database, job_id)) == [0, 1]


def test_what_cannot_be_asked_again_costs_no_statement(
    machine: Start, hand_in: Submit, monkeypatch: pytest.MonkeyPatch, sqlite_database: Database
) -> None:
    for name in ("claim", "look", "take_over"):
        monkeypatch.setattr(generations, name, None)
    job_id = hand_in([f"say {number}" for number in range(20)], sampling={"temperature": 1})
    machine().wait()
    assert_job_is_sound(sqlite_database, job_id)


def test_a_prompt_that_is_refused_fails_for_each_of_its_requests(
    sqlite_database: Database, card: Card, machine: Start, hand_in: Submit
) -> None:
    """Before the engine (too long for the card), and in it."""
    long = {"prompt": "word " * 9, "max_tokens": card.limits.max_total_tokens - 5}
    job_id = hand_in([long, "!refuse", long, "!refuse", "fine", *["!refuse"] * 20])
    machine().wait()
    codes = [one.error_code for one in assert_job_is_sound(sqlite_database, job_id)]
    assert codes[:5] == [
        "max_total_tokens_exceeded",
        "engine_error",
        "max_total_tokens_exceeded",
        "engine_error",
        None,
    ]
    assert codes[5:] == ["engine_error"] * 20


def test_after_a_failure_a_later_success_serves_the_rest(
    sqlite_database: Database, machine: Start, hand_in: Submit
) -> None:
    engine = CountingEngine()
    engine.fails["same"] = 1
    job_id = hand_in(["same"] * 40)
    machine(engine, num_slots=1).wait()
    outcomes = assert_job_is_sound(sqlite_database, job_id)
    assert [one.status for one in outcomes].count(ResultStatus.FAILED) == 1
    # the first chunk's own twins, which each found out for themselves
    assert len(_generated(outcomes)) == 8
    assert engine.seen["same"] == 8


def test_when_the_owner_s_worker_stops_another_generates(
    sqlite_database: Database, machine: Start, hand_in: Submit
) -> None:
    job_id = hand_in(["same"] * 16)
    first = machine(num_slots=1, held=True)
    wait_until(lambda: first.engine.seen["same"] == 1, "the first worker generates")
    second = machine(num_slots=1)
    wait_until(lambda: _awaited(second), "the second one waits")
    assert second.engine.seen.total() == 0
    first.runner.drain()
    first.wait()
    second.wait()
    outcomes = assert_job_is_sound(sqlite_database, job_id)
    assert second.engine.seen == {"same": 1}
    assert _generated(outcomes) == [8]


def _awaited(machine: Machine) -> list[str]:
    """The keys that its chunks wait for."""
    return [key for run in machine.runner.runs() for key in run.awaited()]


def test_when_the_owner_dies_another_generates_and_its_late_result_is_refused(
    sqlite_database: Database, machine: Start, hand_in: Submit
) -> None:
    job_id = hand_in(["same"] * 16)
    frozen = machine(num_slots=1, held=True)
    wait_until(lambda: frozen.engine.seen["same"] == 1, "the first worker generates")
    second = machine(num_slots=1)
    wait_until(lambda: _awaited(second), "the second one waits")
    assert recovery.worker_died(sqlite_database, "w0", 9).num_requeued == 1
    second.wait()
    frozen.engine.may_answer.set()
    frozen.wait()
    assert _generated(assert_job_is_sound(sqlite_database, job_id)) == [8]
    assert second.engine.seen == {"same": 1}


def test_a_cancelled_job_ends_though_its_twins_wait(
    sqlite_database: Database, machine: Start, hand_in: Submit
) -> None:
    job_id = hand_in(["same"] * 16)
    one = machine(num_slots=2, held=True)
    wait_until(
        lambda: len(_awaited(one)) == 2 and one.engine.seen["same"] == 1, "one chunk waits for the other"
    )
    cancel(sqlite_database, job_id)
    for run in one.runner.runs():
        one.runner.stop_lease(run.lease.lease_id, StopReason.CANCELLED)
    one.wait()
    assert queries.get_job(sqlite_database, job_id).state == "cancelled"
    assert_job_is_sound(sqlite_database, job_id)


def test_a_suspect_chunk_waits_for_nobody(
    sqlite_database: Database, card: Card, machine: Start, hand_in: Submit
) -> None:
    """Its worker's other chunks might wait for it, while it waits for them to be over."""
    job_id = hand_in(["same"] * 16)
    owner = machine(num_slots=1, held=True)
    wait_until(lambda: owner.engine.seen["same"] == 1, "the first chunk generates")
    with sqlite_database.write() as tx:
        transitions.register_worker(tx, "dying", card.name, "echo", "host", 1)
    assert leases.claim(sqlite_database, "dying", card.name, 60) is not None
    assert recovery.worker_died(sqlite_database, "dying", 1).num_split == 1
    second = machine(num_slots=2)
    second.wait()
    assert second.engine.seen["same"] == 8
    owner.engine.may_answer.set()
    owner.wait()
    outcomes = assert_job_is_sound(sqlite_database, job_id)
    assert len(_generated(outcomes)) == 9


# across jobs


def test_another_job_s_results_are_taken_when_it_is_asked_for(
    sqlite_database: Database, machine: Start, hand_in: Submit
) -> None:
    prompts = [f"say {number}" for number in range(20)]
    first = hand_in(prompts)
    machine().wait()
    plain, reusing = hand_in(prompts), hand_in([*prompts, "say 0", "new"], reuse=True)
    later = machine()
    later.wait()
    assert _generated(assert_job_is_sound(sqlite_database, plain)) == list(range(20))
    outcomes = assert_job_is_sound(sqlite_database, reusing)
    assert _generated(outcomes) == [21]
    assert outcomes[20].reused_from in {f"{first}:0", f"{plain}:0"}
    assert later.engine.seen == Counter([*prompts, "new"])
    job = queries.get_job(sqlite_database, reusing)
    assert (job.is_reusing, job.num_reused, job.completion_tokens) == (True, 21, 1)


def test_a_job_with_a_seed_takes_the_results_of_its_like(
    sqlite_database: Database, machine: Start, hand_in: Submit
) -> None:
    """Each request's seed follows from the job's and its index, so another index is another request."""
    hand_in(["same"] * 5, sampling={"seed": 7})
    machine().wait()
    again = hand_in(["same"] * 6, sampling={"seed": 7}, reuse=True)
    other = hand_in(["same"] * 5, sampling={"seed": 8}, reuse=True)
    machine().wait()
    assert _generated(assert_job_is_sound(sqlite_database, again)) == [5]
    assert _generated(assert_job_is_sound(sqlite_database, other)) == list(range(5))


def test_another_engine_s_results_are_not_taken(
    sqlite_database: Database, machine: Start, hand_in: Submit
) -> None:
    hand_in(["same"])
    machine().wait()
    reusing = hand_in(["same"], reuse=True)
    machine(CountingEngine("another")).wait()
    assert _generated(assert_job_is_sound(sqlite_database, reusing)) == [0]


# faults


def test_while_the_database_is_away_twins_wait_on(
    sqlite_database: Database, machine: Start, hand_in: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, calls = generations.look, itertools.count(1)

    def away_at_first(*arguments: Any) -> Any:
        if next(calls) <= 3:
            raise DatabaseUnavailableError("away")
        return look(*arguments)

    monkeypatch.setattr(generations, "look", away_at_first)
    job_id = hand_in(["same"] * 16)
    machine().wait()
    assert len(_generated(assert_job_is_sound(sqlite_database, job_id))) == 1
    assert next(calls) > 4


def test_a_bug_there_ends_the_chunk_and_not_the_writer(
    sqlite_database: Database, machine: Start, hand_in: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease expires, as with any bug; what does not wait is written all the same."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(generations, "look", broken)
    job_id = hand_in(["same", *[f"say {number}" for number in range(6)], "same", "other"])
    machine(num_slots=1).wait()
    counts = queries.get_job(sqlite_database, job_id).counts
    assert (counts.succeeded, counts.running) == (8, 1)


def test_twins_of_a_chunk_that_lost_its_lease_take_over_nothing(
    sqlite_database: Database, card: Card, hand_in: Submit
) -> None:
    hand_in(["same"] * 16)
    with sqlite_database.write() as tx:
        transitions.register_worker(tx, "w", card.name, "echo", "host", 1)

    def claim() -> Lease:
        lease = leases.claim(sqlite_database, "w", card.name, 60)
        assert lease is not None
        return lease

    owner, lost = claim(), claim()
    generations.claim(sqlite_database, owner, {"k": 0}, is_reusing=False)
    run = ChunkRun(lost)
    request = EngineRequest(1, Rendered("x", [1]), 5, stream=False, sampling={})
    run.begin([], [], [replace(Flight(8, request), content_key="k")])
    for lease in (owner, lost):
        leases.release(sqlite_database, lease)
    Reuse(sqlite_database, Patience(lambda: True), lambda: [run]).settle()
    assert run.awaited() == {"k": 8}
    assert run.error is None
