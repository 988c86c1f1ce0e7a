"""What requests may ask of the real engine's answers: JSON, calls of tools, several completions, logprobs."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from jobs.cards import Card, find_card
from jobs.generation import parse_generation
from jobs.schema import RequestSchema
from jobs.settings import Settings
from workers.chunk_run import result_of
from workers.engine import Completion, EngineRequest, Failure, RequestRefusedError
from workers.vllm_engine import VllmEngine

# torch and vLLM warn of their own doings
pytestmark = pytest.mark.filterwarnings("default")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["tea", "bread", "rain"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
CHOICE: dict[str, Any] = {"anyOf": [{"enum": ["yes", "no"]}, {"type": "boolean"}, {"$ref": "#/$defs/short"}]}
CHOICE["$defs"] = {"short": {"type": "string", "pattern": "^[a-c]{1,3}$"}}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


class Machine:
    """One engine, driven to the end of what it is given."""

    def __init__(self, card: Card, home: Path) -> None:
        self.card = card
        self.engine = VllmEngine(Settings(home=home, cpu_kv_cache_gib=1, engine_num_seqs=32), card)
        self._schema = RequestSchema(card.input_schema)

    def run(self, *bodies: dict[str, Any]) -> list[Any]:
        """A Completion or Failure for each, or the error with which it was refused."""
        generations = [parse_generation(self._schema, body, self.card.sampling) for body in bodies]
        outcomes: dict[int, Any] = {}
        for key, prompt in enumerate(self.engine.render(generations, self.card.limits)):
            try:
                self.engine.add(EngineRequest.of(key, prompt, generations[key]))  # type: ignore[arg-type]
            except RequestRefusedError as error:
                outcomes[key] = error
        while self.engine.num_unfinished:
            outcomes.update((outcome.key, outcome) for outcome in self.engine.step())
        return [outcomes[key] for key in range(len(bodies))]


@pytest.fixture(scope="module")
def machine(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    home = tmp_path_factory.mktemp("home")
    card = replace(find_card(home, "smollm2-135m-instruct"), local_weights=str(weights))
    made = Machine(card, home)
    yield made
    made.engine.close()


def asking(schema: Any, number: int = 0) -> dict[str, Any]:
    return {
        "prompt": f"Tell me about person {number}.",
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        "temperature": 1.0,
        "seed": number,
        "max_tokens": 80,
    }


def test_two_hundred_answers_all_parse_and_satisfy_their_schema(machine: Machine) -> None:
    schemas: list[dict[str, Any]] = [PERSON, CHOICE]
    done = machine.run(*[asking(schemas[number % 2], number) for number in range(200)])
    assert Counter(one.finish_reason for one in done) == {"stop": 200}
    validators = [jsonschema_rs.validator_for(schema) for schema in schemas]
    for number, one in enumerate(done):
        assert validators[number % 2].is_valid(json.loads(one.text)), number
    assert len({one.text for one in done}) > 50, "they are answers, and not one answer"


def test_any_object_will_do_where_no_schema_is_given(machine: Machine) -> None:
    body = {
        "prompt": "Give me a person as JSON.",
        "response_format": {"type": "json_object"},
        "max_tokens": 60,
    }
    for one in machine.run(body, {**body, "temperature": 1.0, "seed": 3}):
        if one.finish_reason == "stop":
            assert isinstance(json.loads(one.text), dict)
        assert one.text.startswith("{")


def test_a_schema_that_the_backend_cannot_compile_fails_that_request_alone(machine: Machine) -> None:
    good = asking({"enum": ["yes", "no"]})
    refused = [
        {"type": "array", "uniqueItems": True},
        {"type": "string", "pattern": "(?=a)b"},
        {"$ref": "#/$defs/nowhere"},
        # too deep for vLLM, which our submit leaves to it
        json.loads('{"items": ' * 70 + "{}" + "}" * 70),
    ]
    done = machine.run(good, *map(asking, refused), good, {"prompt": "hi", "max_tokens": 2})
    assert [type(one) for one in done] == [Completion, *[RequestRefusedError] * 4, Completion, Completion]
    assert {one.code for one in done[1:5]} == {"unsupported_schema"}
    assert {done[0].text, done[5].text} <= {'"yes"', '"no"'}


def test_a_schema_that_fails_in_the_engine_fails_alone_too(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.engine, "_verify_schema", lambda params: params)
    monkeypatch.setattr("vllm.sampling_params.SamplingParams.verify", _choose_backend)
    bad, good = machine.run(asking({"type": "array", "uniqueItems": True}), {"prompt": "hi", "max_tokens": 2})
    assert bad == Failure(0, "the engine cannot hold a completion to its schema", code="unsupported_schema")
    assert isinstance(good, Completion)


def _choose_backend(params: Any, *_: Any) -> None:
    if params.structured_outputs is not None:
        params.structured_outputs._backend = "guidance"


def test_what_is_cut_off_says_so(machine: Machine) -> None:
    (cut,) = machine.run({**asking(PERSON), "max_tokens": 5})
    assert cut.finish_reason == "length"
    with pytest.raises(ValueError, match=r".*"):
        json.loads(cut.text)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_forced_call_is_made_with_its_arguments(machine: Machine, choice: Any) -> None:
    other = {"name": "get_time"} if choice != "required" else TOOL
    tools = [TOOL] if other is TOOL else [other, TOOL]
    body = {"prompt": "How is the weather in Rome?", "tools": tools, "tool_choice": choice, "max_tokens": 60}
    (done,) = machine.run(body)
    use = parse_generation(RequestSchema(machine.card.input_schema), body, {}).tools
    result = result_of(done, use)
    assert done.finish_reason == "stop"
    assert result["response"] == ""
    (call,) = result["tool_calls"]
    assert call["name"] == "get_weather"
    assert jsonschema_rs.validator_for(TOOL["function"]["parameters"]).is_valid(call["arguments"])


def test_offered_tools_may_be_left_alone(machine: Machine) -> None:
    (done,) = machine.run({"prompt": "Say hello.", "tools": [TOOL], "max_tokens": 24})
    assert done.text
    assert "<|im_end|>" not in done.text
    assert done.num_prompt_tokens > 60, "the tools are in the prompt"


def test_n_completions_differ_and_come_again_with_their_seed(machine: Machine) -> None:
    body = {"prompt": "Write a line of a poem.", "n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 8}
    alone = {**body, "n": 1, "seed": 6}
    first, again, second_alone, greedy = machine.run(body, body, alone, {**body, "temperature": 0})
    texts = [first.text, *[one.text for one in first.others]]
    assert len(set(texts)) == 3
    assert [again.text, *[one.text for one in again.others]] == texts
    assert second_alone.text == texts[1], "the n-th has the seed + n"
    assert first.num_completion_tokens == 24
    assert isinstance(greedy, RequestRefusedError)


def test_n_completions_are_aborted_as_one(machine: Machine) -> None:
    body = {"prompt": "Tell a long story.", "n": 4, "temperature": 1.0, "max_tokens": 500}
    generation = parse_generation(RequestSchema(machine.card.input_schema), body, {})
    (prompt,) = machine.engine.render([generation], machine.card.limits)
    machine.engine.add(EngineRequest.of(9, prompt, generation))  # type: ignore[arg-type]
    machine.engine.step()
    assert machine.engine.num_unfinished == 4
    machine.engine.abort([9])
    assert machine.engine.num_unfinished == 0
    assert isinstance(machine.run({"prompt": "hi", "max_tokens": 2})[0], Completion)


def test_logprobs_have_each_token_and_its_likeliest_alternatives(machine: Machine) -> None:
    body = {"prompt": "Say hello.", "max_tokens": 6, "temperature": 1.0, "seed": 2}
    without, none, two = machine.run(
        body, {**body, "logprobs": True}, {**body, "logprobs": True, "top_logprobs": 2}
    )
    assert without.logprobs is None
    assert [len(one["top_logprobs"]) for one in none.logprobs] == [0] * none.num_completion_tokens
    assert [len(one["top_logprobs"]) for one in two.logprobs] == [2] * two.num_completion_tokens
    for one in two.logprobs:
        best, second = one["top_logprobs"]
        assert 0 >= best["logprob"] >= second["logprob"]
        assert one["logprob"] <= best["logprob"]
        assert math.isfinite(one["logprob"])
        assert bytes(one["bytes"]).decode() == one["token"]
    assert "".join(one["token"] for one in two.logprobs).startswith(two.text)


# A template of our own in the manner of Hermes 2 Pro: one for chats, and one for tools beside it.
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TOOL_USE = (
    "<|im_start|>system\nTools: <tools>{% for tool in tools %}{{ tool.function | tojson }}{% endfor %}</tools>"
    "<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'tool' %}"
    "<tool_response>{{ {'name': m.name, 'content': m.content} | tojson }}</tool_response>"
    "{% elif m.tool_calls %}{% for call in m.tool_calls %}"
    "<tool_call>{{ call.function.arguments.city }}</tool_call>{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_model_s_own_template_for_tools_is_taken(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    from jobs.rendering import Rendered, Renderer

    renderer = Renderer(AutoTokenizer.from_pretrained(machine.card.local_weights or ""))
    monkeypatch.setattr(renderer._tokenizer, "chat_template", {"default": _CHAT, "tool_use": _TOOL_USE})
    function = {"name": "get_weather", "arguments": '{"city": "Rome", "unit": "C"}'}
    messages = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    schema = RequestSchema(machine.card.input_schema)
    bodies: list[dict[str, Any]] = [{"messages": messages, "tools": [TOOL]}, {"prompt": "hi"}]
    tooled, plain = renderer.render(
        [parse_generation(schema, body, {}) for body in bodies], machine.card.limits
    )
    assert isinstance(tooled, Rendered)
    assert isinstance(plain, Rendered)
    assert json.dumps(TOOL["function"]) in tooled.text
    assert "<tool_call>Rome</tool_call>" in tooled.text
    assert '<tool_response>{"name": "get_weather", "content": "sunny"}</tool_response>' in tooled.text
    assert plain.text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
