"""A chunk in flight: a failure that may pass is tried again so often and no oftener, and the result says how often."""

import itertools
from collections.abc import Callable

import pytest

from db.leases import NewResult
from db.transitions import Lease
from jobs.rendering import Rendered
from workers.chunk_run import ChunkRun, Flight
from workers.engine import Completion, EngineRequest, Failure

_MAX_RETRIES = 2

_Answer = Callable[[int], Completion | Failure]


def _good(key: int) -> Completion:
    return Completion(key, "fine", None, "stop", 1, 1)


def _may_pass(key: int) -> Failure:
    return Failure(key, "out of room", is_transient=True)


def _run_through(answers: list[_Answer]) -> tuple[list[NewResult], int]:
    """One request, whose answers come in turn: its result, and how often it was in the engine."""
    run, keys = ChunkRun(Lease("lease", 1, "job", 7, 1, 1)), itertools.count(100)
    waiting = [EngineRequest(next(keys), Rendered("x", [1]), 5, stream=False, sampling={})]
    run.begin([], [Flight(7, waiting[0])])
    taken: list[NewResult] = []
    for num_times in itertools.count(1):
        assert not run.is_whole
        run.deliver(answers[num_times - 1](waiting[0].key))
        assert run.wait(0), "its slot is woken"
        taken += run.take()
        waiting = run.take_due(lambda: next(keys))
        if not waiting:
            assert run.is_whole
            return taken, num_times
    raise AssertionError


@pytest.mark.parametrize("num_failures", range(_MAX_RETRIES + 1))
def test_what_passes_in_time_succeeds(num_failures: int) -> None:
    results, num_times = _run_through([*[_may_pass] * num_failures, _good])
    assert num_times == num_failures + 1
    assert [(one.index, one.error_code, one.num_retries) for one in results] == [(7, None, num_failures)]


def test_what_does_not_pass_fails_in_the_end() -> None:
    results, num_times = _run_through([_may_pass] * 10)
    assert num_times == _MAX_RETRIES + 1
    assert [(one.error_code, one.error_message, one.num_retries) for one in results] == [
        ("engine_error", "out of room", _MAX_RETRIES)
    ]


def test_what_cannot_pass_is_not_tried_again() -> None:
    results, num_times = _run_through([lambda key: Failure(key, "no")])
    assert num_times == 1
    assert [(one.error_code, one.num_retries) for one in results] == [("engine_error", 0)]


def test_what_came_before_waits_for_nobody() -> None:
    """Of two requests the finished one can be written while the other is in the engine again."""
    run = ChunkRun(Lease("lease", 1, "job", 0, 2, 1))
    requests = [EngineRequest(key, Rendered("x", [1]), 5, stream=False, sampling={}) for key in (0, 1)]
    run.begin([], [Flight(key, request) for key, request in enumerate(requests)])
    run.deliver(_good(0))
    run.deliver(_may_pass(1))
    assert run.wait(0)
    assert [one.index for one in run.take()] == [0]
    assert [again.key for again in run.take_due(lambda: 2)] == [2]
    assert run.unfinished() == [2]
    assert not run.wait(0)


# twins

_RESULT = NewResult(3, result='{"response": "x"}', content_key="k", reused_from="job:3")


def _twin(index: int, key: str = "k") -> Flight:
    request = EngineRequest(index, Rendered("x", [1]), 5, stream=False, sampling={})
    return Flight(index, request, content_key=key)


def _run_of(*twins: Flight, flights: tuple[Flight, ...] = ()) -> ChunkRun:
    run = ChunkRun(Lease("lease", 1, "job", 0, len(twins) + len(flights), 1))
    run.begin([], flights, twins)
    return run


def test_twins_get_their_result_each_under_its_own_index() -> None:
    run = _run_of(_twin(5), _twin(6, "other"), _twin(7))
    assert run.wait(0), "there is nothing in the engine"
    assert run.awaited() == {"k": 5, "other": 6}
    assert not run.is_whole
    run.answer("k", _RESULT)
    assert not run.wait(0), "one is still awaited"
    assert [(one.index, one.reused_from) for one in run.take()] == [(5, "job:3"), (7, "job:3")]
    run.answer("other", _RESULT)
    assert run.wait(0), "its slot is woken"
    assert not run.is_whole, "the last one is not taken yet"
    assert [one.index for one in run.take()] == [6]
    assert run.is_whole


def test_twins_are_no_reason_to_look_again_and_again() -> None:
    run = _run_of(_twin(5))
    assert run.wait(0)
    assert run.take_due(lambda: 1) == []
    assert not run.wait(0)


def test_of_twins_whose_owner_is_gone_one_is_generated_and_the_others_wait_on() -> None:
    run = _run_of(_twin(5), _twin(6))
    assert run.wait(0)
    run.generate("k", 1)
    assert run.wait(0), "its slot is woken"
    due = run.take_due(lambda: 100)
    assert [request.key for request in due] == [100]
    assert run.awaited() == {"k": 6}
    assert run.unfinished() == [100]
    run.deliver(_good(100))
    (result,) = run.take()
    assert (result.index, result.content_key, result.num_retries) == (5, "k", 0)
    assert not run.is_whole
    run.answer("k", _RESULT)
    assert [one.index for one in run.take()] == [6]
    assert run.is_whole


def test_after_a_failure_every_twin_is_generated() -> None:
    run = _run_of(_twin(5), _twin(6))
    run.generate("k")
    keys = itertools.count(100)
    assert [request.key for request in run.take_due(lambda: next(keys))] == [100, 101]
    assert run.awaited() == {}


def test_a_failure_of_the_engine_says_what_was_asked() -> None:
    run = _run_of(flights=(_twin(5),))
    run.deliver(Failure(5, "no"))
    assert [(one.error_code, one.content_key) for one in run.take()] == [("engine_error", "k")]


def test_an_answer_that_nobody_waits_for_is_dropped() -> None:
    run = _run_of(_twin(5))
    run.answer("unknown", _RESULT)
    assert run.take() == []
