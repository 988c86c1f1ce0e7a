"""The echo engine keeps the contract of an engine, and says the same thing whenever it is asked the same."""

import pytest

from jobs.cards import Limits
from jobs.generation import Generation
from jobs.rendering import Rendered
from jobs.schema import Problem
from workers import echo_engine
from workers.echo_engine import EchoEngine
from workers.engine import Completion, EngineRequest
from workers.main import _create_engine

LIMITS = Limits(max_input_length=10, max_total_tokens=14, max_batch_prefill_tokens=100)


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(echo_engine, "time", made)
    return made


def generation(prompt: str | None, *messages: str, max_tokens: int = 4) -> Generation:
    chat = [{"role": "user", "content": content} for content in messages] or None
    return Generation(prompt, chat, raw=False, stream=False, max_tokens=max_tokens)


def request(key: int, text: str = "a b c", max_tokens: int = 4, *, stream: bool = False) -> EngineRequest:
    return EngineRequest(key, Rendered(text, []), max_tokens, stream, {})


def run(engine: EchoEngine, *requests: EngineRequest) -> list[Completion]:
    for one in requests:
        engine.add(one)
    finished: list[Completion] = []
    while engine.num_unfinished:
        finished += [outcome for outcome in engine.step() if isinstance(outcome, Completion)]
    return finished


# rendering


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (generation("one two three"), "one two three"),
        (generation(None, "be brief", "one two"), "one two"),
    ],
)
def test_a_token_is_a_word_of_the_prompt_or_of_the_last_message(asked: Generation, text: str) -> None:
    (rendered,) = EchoEngine(1, 0).render([asked], LIMITS)
    assert isinstance(rendered, Rendered)
    assert rendered.text == text
    assert len(rendered.token_ids) == len(text.split())


def test_limits_are_held_request_by_request_with_the_numbers_in_the_refusal() -> None:
    outcomes = EchoEngine(1, 0).render(
        [
            generation("w " * 10),
            generation("w " * 11),
            generation("w " * 10, max_tokens=5),
            generation(""),
            generation(None),
        ],
        LIMITS,
    )
    assert isinstance(outcomes[0], Rendered)
    assert outcomes[1:] == [
        Problem("input_too_long", "", "11 prompt tokens are more than max_input_length (10)"),
        Problem(
            "max_total_tokens_exceeded",
            "",
            "10 prompt tokens + max_tokens 5 = 15 are more than max_total_tokens (14)",
        ),
        Problem("input_empty", "", "the prompt has no tokens"),
        Problem("input_empty", "", "the prompt has no tokens"),
    ]


# completions


def test_the_completion_is_the_prompt() -> None:
    assert run(EchoEngine(1, 0), request(7, "a  b\nc")) == [Completion(7, "a b c", None, "stop", 3, 3)]


def test_it_is_cut_off_after_max_tokens() -> None:
    (cut,) = run(EchoEngine(1, 0), request(7, "a b c", 2))
    assert (cut.text, cut.finish_reason, cut.num_prompt_tokens, cut.num_completion_tokens) == (
        "a b",
        "length",
        3,
        2,
    )


def test_a_streamed_completion_has_its_pieces() -> None:
    (streamed,) = run(EchoEngine(1, 0), request(7, "a b c", stream=True))
    assert streamed.pieces == ("a", " b", " c")
    assert streamed.text == "".join(streamed.pieces)


def test_the_same_requests_have_the_same_completions() -> None:
    requests = [request(key, f"say {key}", 1 + key % 3) for key in range(50)]
    assert run(EchoEngine(4, 0), *requests) == run(EchoEngine(4, 0), *requests)


# running


def test_each_request_takes_as_long_as_was_asked_for(clock: Clock) -> None:
    run(EchoEngine(num_seqs=2, latency_s=1.5), *[request(key) for key in range(4)])
    assert clock.now == pytest.approx(103.0), "two at a time"


def test_a_step_does_not_sleep_for_long(clock: Clock) -> None:
    """Else a stop or a new request would wait for it."""
    engine = EchoEngine(num_seqs=1, latency_s=60)
    engine.add(request(1))
    assert engine.step() == []
    assert 0 < sum(clock.slept) <= 0.05


def test_without_latency_there_is_no_sleep(clock: Clock) -> None:
    run(EchoEngine(num_seqs=2, latency_s=0), *[request(key) for key in range(100)])
    assert clock.slept == []


def test_what_waits_counts_as_unfinished(clock: Clock) -> None:
    engine = EchoEngine(num_seqs=2, latency_s=1)
    for key in range(5):
        engine.add(request(key))
    assert (engine.num_seqs, engine.num_unfinished) == (2, 5)
    engine.step()
    assert engine.num_unfinished == 5
    clock.now += 1
    assert [outcome.key for outcome in engine.step()] == [0, 1]
    assert engine.num_unfinished == 3


def test_what_is_aborted_is_forgotten_and_its_place_is_free(clock: Clock) -> None:
    engine = EchoEngine(num_seqs=2, latency_s=1)
    for key in range(5):
        engine.add(request(key))
    engine.step()
    engine.abort([0, 3, 99])
    assert engine.num_unfinished == 3
    engine.step()
    clock.now += 1
    assert [outcome.key for outcome in engine.step()] == [1, 2]
    assert [outcome.key for outcome in run(engine)] == [4]


def test_close_drops_everything() -> None:
    engine = EchoEngine(num_seqs=1, latency_s=1)
    engine.add(request(1))
    engine.add(request(2))
    engine.step()
    engine.close()
    assert engine.num_unfinished == 0


def test_the_settings_choose_it() -> None:
    from pathlib import Path

    from jobs.cards import find_card
    from jobs.settings import Settings

    settings = Settings(engine="echo", engine_num_seqs=3, echo_latency_s=0.5)
    engine = _create_engine(settings, find_card(Path("no-home"), "smollm2-135m-instruct"))
    assert isinstance(engine, EchoEngine)
    assert (engine.label, engine.num_seqs) == ("echo", 3)
