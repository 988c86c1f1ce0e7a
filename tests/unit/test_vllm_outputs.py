"""What vLLM gives back: when a completion is none, and its tokens' probabilities."""

import math
from dataclasses import dataclass
from typing import Any

import pytest

from jobs.rendering import Rendered
from workers.engine import EngineRequest
from workers.vllm_outputs import failure_of, logprobs_of


@dataclass
class Output:
    """As much of vLLM's CompletionOutput as is looked at."""

    finish_reason: str = "stop"
    stop_reason: Any = None
    token_ids: tuple[int, ...] = ()
    logprobs: Any = None


@dataclass
class Logprob:
    logprob: float
    rank: int
    decoded_token: str | None


def request(schema: str | None = None) -> EngineRequest:
    return EngineRequest(7, Rendered("x", [1]), 5, False, {}, schema)


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_what_ends_as_it_should_is_no_failure(reason: str) -> None:
    assert failure_of(request(), Output(reason), "no JSON") is None
    assert failure_of(request("{}"), Output(reason), '{"a": 1}') is None


@pytest.mark.parametrize("reason", ["abort", "error", "repetition"])
def test_what_the_engine_gave_up_may_be_tried_again(reason: str) -> None:
    failure = failure_of(request(), Output(reason), "")
    assert failure is not None
    assert (failure.key, failure.is_transient, failure.code) == (7, True, "engine_error")


@pytest.mark.parametrize(
    ("output", "text"), [(Output("error"), ""), (Output("stop"), ""), (Output("stop", 32000), '{"a": ')]
)
def test_what_is_not_held_to_its_schema_fails_for_good(output: Output, text: str) -> None:
    failure = failure_of(request("{}"), output, text)
    assert failure is not None
    assert (failure.is_transient, failure.code) == (False, "unsupported_schema")


def test_what_is_cut_off_may_be_no_json() -> None:
    assert failure_of(request("{}"), Output("length"), '{"a": ') is None
    assert failure_of(request("{}"), Output("stop", "###"), '{"a": ') is None


def test_a_token_stands_with_the_likeliest_of_which_it_may_be_one() -> None:
    likely, chosen = Logprob(-0.1, 1, "é"), Logprob(-3.0, 9, " b")
    output = Output(token_ids=(5, 6), logprobs=[{5: likely}, {6: chosen, 5: likely}])
    assert logprobs_of(Output(), 1) is None
    first, second = logprobs_of(output, 1) or []
    shown = {"token": "é", "logprob": -0.1, "bytes": [0xC3, 0xA9]}
    assert first == {**shown, "top_logprobs": [shown]}
    assert second == {"token": " b", "logprob": -3.0, "bytes": [32, 98], "top_logprobs": [shown]}
    assert [one["top_logprobs"] for one in logprobs_of(output, 0) or []] == [[], []]


def test_a_token_that_could_not_come_is_still_json() -> None:
    output = Output(token_ids=(5,), logprobs=[{5: Logprob(-math.inf, 1, None)}])
    assert logprobs_of(output, 0) == [{"token": "", "logprob": -9999.0, "bytes": [], "top_logprobs": []}]
