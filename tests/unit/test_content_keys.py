"""One key is one question to one model: what may change the answer changes the key, and nothing else does."""

from dataclasses import replace
from typing import Any

import pytest

from jobs.content_keys import ContentKeys
from jobs.generation import Generation
from jobs.tools import ToolUse

_DETAILS = {
    "name": "vllm",
    "version": "0.11.0",
    "arguments": {"model": "/models/tiny", "max_num_seqs": 64, "enforce_eager": True},
    "dtype": "bfloat16",
    "weights": {"source": "/models/tiny", "revision": None, "fingerprint": "sha256:ab"},
    "sampling": {"temperature": 0.7},
}
_ASKED = Generation(
    prompt=None,
    messages=[{"role": "user", "content": "Say hello."}],
    raw=False,
    stream=False,
    max_tokens=16,
    sampling={"temperature": 0, "top_p": 0.9},
    is_repeatable=True,
)


def _key(asked: Generation = _ASKED, card: str = "c" * 64, **details: Any) -> str:
    return ContentKeys(card, {**_DETAILS, **details}).of(asked)


def test_a_key_is_the_same_wherever_it_is_made() -> None:
    """In another process too: these digits may change with a release, which then has no hits, and not by accident."""
    assert _key() == "8c76dbd667dc19648aa43528d513b12e"


@pytest.mark.parametrize(
    "changed",
    [
        {"messages": [{"role": "user", "content": "Say hello!"}]},
        {"messages": [{"role": "system", "content": "Say hello."}]},
        {"messages": None, "prompt": "Say hello."},
        {"messages": None, "prompt": "Say hello.", "raw": True},
        {"stream": True},
        {"max_tokens": 17},
        {"sampling": {"temperature": 0, "top_p": 0.8}},
        {"sampling": {"temperature": 0, "top_p": 0.9, "seed": 1}},
        {"sampling": {"temperature": 0, "top_p": 0.9, "seed": 2}},
        {"sampling": {"temperature": 0, "top_p": 0.9, "n": 2}},
        {"sampling": {"temperature": 0, "top_p": 0.9, "logprobs": 0}},
        {"sampling": {"temperature": 0, "top_p": 0.9, "stop": ["a", "b"]}},
        {"schema": '{"type": "object"}'},
        {"tools": ToolUse(())},
        {"tools": ToolUse(({"name": "a"},))},
        {"tools": ToolUse(({"name": "a"},), '{"type": "object"}')},
    ],
    ids=str,
)
def test_all_that_a_request_says_counts(changed: dict[str, Any]) -> None:
    assert _key(replace(_ASKED, **changed)) != _key()


def test_all_that_differs_differs_from_each_other() -> None:
    raw = replace(_ASKED, messages=None, prompt="Say hello.", raw=True)
    asked = [_ASKED, raw, replace(raw, raw=False), replace(raw, stream=True), replace(raw, max_tokens=2)]
    assert len(set(map(_key, asked))) == len(asked)


def test_the_order_of_parameters_does_not_count() -> None:
    assert _key(replace(_ASKED, sampling={"top_p": 0.9, "temperature": 0})) == _key()


def test_the_order_within_a_message_does_since_a_template_may_show_it() -> None:
    turned = [{"content": "Say hello.", "role": "user"}]
    assert _key(replace(_ASKED, messages=turned)) != _key()


@pytest.mark.parametrize(
    "details",
    [
        {"name": "echo"},
        {"version": "0.12.0"},
        {"dtype": "float16"},
        {"weights": {"source": "/models/tiny", "revision": None, "fingerprint": "sha256:cd"}},
        {"weights": {"source": "Some/Model", "revision": "abc"}},
        {"sampling": {}},
        {"arguments": {**_DETAILS["arguments"], "quantization": "awq"}},  # type: ignore[dict-item]
        {"arguments": {**_DETAILS["arguments"], "enforce_eager": False}},  # type: ignore[dict-item]
    ],
    ids=str,
)
def test_another_engine_or_model_has_other_keys(details: dict[str, Any]) -> None:
    assert _key(**details) != _key()


def test_another_card_has_other_keys() -> None:
    assert _key(card="d" * 64) != _key()


def test_another_revision_on_the_hub_has_other_keys() -> None:
    first, second = ({"source": "Some/Model", "revision": revision} for revision in ("abc", "def"))
    assert _key(weights=first) != _key(weights=second)


@pytest.mark.parametrize(
    "details",
    [
        {"weights": {"source": "/elsewhere/tiny", "revision": None, "fingerprint": "sha256:ab"}},
        {
            "arguments": {
                "model": "/elsewhere/tiny",
                "max_num_seqs": 256,
                "max_num_batched_tokens": 9,
                "kv_cache_memory_bytes": 1,
                "gpu_memory_utilization": 0.5,
                "enforce_eager": True,
            }
        },
    ],
    ids=["where the weights are", "how much runs at once"],
)
def test_what_leaves_answers_as_they_are_leaves_the_keys(details: dict[str, Any]) -> None:
    assert _key(**details) == _key()


def test_an_engine_without_weights_has_keys_too() -> None:
    keys = [
        ContentKeys("c", {"name": "echo", "arguments": {"latency_s": latency_s}}).of(_ASKED)
        for latency_s in (0, 1)
    ]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 32
