"""The vLLM engine behind its protocol: both forms, raw, stream, limits, and bad requests that fail alone."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.cards import Limits, find_card
from jobs.generation import Generation
from jobs.rendering import Rendered
from jobs.schema import Problem
from jobs.settings import Settings
from workers.engine import Completion, EngineRequest, Failure
from workers.feed import Feed
from workers.vllm_engine import VllmEngine
from workers.waiting import Outcome

# torch and vLLM warn of their own doings
pytestmark = pytest.mark.filterwarnings("default")

_LIMITS = Limits(max_input_length=1536, max_total_tokens=2048, max_batch_prefill_tokens=4096)
_GREEDY = Generation(None, None, raw=False, stream=False, max_tokens=24, sampling={"temperature": 0})


@pytest.fixture(scope="module")
def feed(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Feed]:
    """One engine, loaded once for this file, on its own thread as in a worker."""
    home = tmp_path_factory.mktemp("home")
    card = find_card(home, "smollm2-135m-instruct")
    card = replace(card, local_weights=str(weights))
    settings = Settings(home=home, cpu_kv_cache_gib=1, engine_num_seqs=16)
    made = Feed(lambda: VllmEngine(settings, card))
    made.start()
    made.wait_ready()
    yield made
    made.stop()


def _generate(feed: Feed, generations: Sequence[Generation], limits: Limits = _LIMITS) -> list[Any]:
    """Outcomes in order: a Completion, a Failure, or the Problem that kept it from the engine."""
    import queue

    engine = feed.wait_ready()
    assert engine is not None
    prompts = engine.render(generations, limits)
    received: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    keys: list[int | None] = []
    requests = []
    for generation, prompt in zip(generations, prompts, strict=True):
        if isinstance(prompt, Problem):
            keys.append(None)
            continue
        keys.append(feed.new_key())
        requests.append(
            EngineRequest(
                keys[-1] or 0, prompt, generation.max_tokens, generation.stream, generation.sampling
            )
        )
    feed.submit(requests, received.put)
    outcomes = {outcome.key: outcome for outcome in (received.get(timeout=120) for _ in requests)}
    return [prompt if key is None else outcomes[key] for key, prompt in zip(keys, prompts, strict=True)]


def test_a_prompt_is_one_user_message(feed: Feed) -> None:
    question = "What is the capital of France?"
    as_prompt, as_messages = _generate(
        feed,
        [
            replace(_GREEDY, prompt=question),
            replace(_GREEDY, messages=[{"role": "user", "content": question}]),
        ],
    )
    assert "Paris" in as_prompt.text
    assert as_prompt.text == as_messages.text
    assert as_prompt.finish_reason == "stop"
    assert as_prompt.num_prompt_tokens == as_messages.num_prompt_tokens > len(question.split())


def test_raw_goes_in_as_it_is(feed: Feed) -> None:
    engine = feed.wait_ready()
    assert engine is not None
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    (rendered,) = engine.render([replace(_GREEDY, prompt=text, raw=True)], _LIMITS)
    assert isinstance(rendered, Rendered)
    assert rendered.text == text
    (completion,) = _generate(feed, [replace(_GREEDY, prompt=text, raw=True)])
    assert "Paris" in completion.text


def test_stream_gives_the_pieces_that_were_produced(feed: Feed) -> None:
    plain = replace(_GREEDY, prompt="Count from one to ten.")
    streamed, whole = _generate(feed, [replace(plain, stream=True), plain])
    assert len(streamed.pieces) > 5
    assert "".join(streamed.pieces) == streamed.text == whole.text
    assert streamed.num_completion_tokens == whole.num_completion_tokens
    assert whole.pieces is None


def test_max_tokens_ends_it_with_length(feed: Feed) -> None:
    (completion,) = _generate(feed, [replace(_GREEDY, prompt="Tell a long story.", max_tokens=7)])
    assert (completion.finish_reason, completion.num_completion_tokens) == ("length", 7)


def test_the_limits_count_real_tokens(feed: Feed) -> None:
    long = replace(_GREEDY, prompt="word " * 100)
    (rendered,) = _generate(feed, [replace(long, max_tokens=1)])
    num_tokens = rendered.num_prompt_tokens
    at_limit = Limits(num_tokens, num_tokens + 24, 4096)
    assert isinstance(_generate(feed, [long], at_limit)[0], Completion)
    (too_long,) = _generate(feed, [long], replace(at_limit, max_input_length=num_tokens - 1))
    assert too_long.code == "input_too_long"
    assert f"{num_tokens} prompt tokens" in too_long.message
    (too_much,) = _generate(feed, [replace(long, max_tokens=25)], at_limit)
    assert too_much.code == "max_total_tokens_exceeded"
    assert str(num_tokens + 25) in too_much.message


def test_one_bad_request_never_fails_its_neighbours(feed: Feed) -> None:
    good = replace(_GREEDY, prompt="Say hello.", max_tokens=4)
    outcomes = _generate(
        feed,
        [
            good,
            # the template reads the role of every message
            replace(_GREEDY, messages=[{"content": "no role"}]),
            good,
            replace(good, sampling={"temperature": 0, "top_p": 7.0}),
            replace(good, prompt="", raw=True),
            replace(good, prompt="word " * 3000),
            good,
        ],
    )
    assert [type(outcome) for outcome in outcomes] == [
        Completion,
        Problem,
        Completion,
        Failure,
        Problem,
        Problem,
        Completion,
    ]
    assert len({outcomes[number].text for number in (0, 2, 6)}) == 1


def test_a_seed_repeats(feed: Feed) -> None:
    hot = replace(_GREEDY, prompt="Write a line of a poem.", sampling={"temperature": 1.0, "seed": 11})
    first, second, other = _generate(
        feed, [hot, hot, replace(hot, sampling={"temperature": 1.0, "seed": 12})]
    )
    assert first.text == second.text
    assert first.text != other.text


def test_aborted_requests_leave_the_engine(feed: Feed) -> None:
    engine = feed.wait_ready()
    assert engine is not None
    (prompt,) = engine.render([replace(_GREEDY, prompt="Tell a long story.")], _LIMITS)
    assert isinstance(prompt, Rendered)
    keys = [feed.new_key() for _ in range(40)]
    delivered: list[Outcome] = []
    feed.submit([EngineRequest(key, prompt, 1500, False, {}) for key in keys], delivered.append)
    feed.abort(keys)
    (completion,) = _generate(feed, [replace(_GREEDY, prompt="Say hello.", max_tokens=2)])
    assert isinstance(completion, Completion)
    assert engine.num_unfinished == 0
    assert delivered == []


def test_the_event_stream_is_the_cards_other_form() -> None:
    from workers.chunk_run import _event_stream

    text = _event_stream(["a", "\n\u00e9"])
    assert text.endswith("data: [DONE]\n\n")
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert [orjson.loads(event)["response"] for event in events[:-1]] == ["a", "\n\u00e9"]
