"""Lines over the token limits are found at submit, by the workers' own rendering, with the numbers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import ALTERNATING, byte_level, sentence_piece, snapshot, write_weights
from tokenizers import Tokenizer

from db.database import Database
from db.errors import CardError
from jobs.admission import Admission, CheckTokens, open_admission
from jobs.cards import Card, Limits
from jobs.generation import Generation
from jobs.reader import InputFile, LineLimits
from jobs.rendering import Renderer
from jobs.schema import Problem
from jobs.settings import Settings
from jobs.submit import InputRefusedError, SubmitOptions, submit
from jobs.tokenizers import SnapshotTokenizer
from jobs.validation import LineChecker, Report, validate

LIMITS = LineLimits(max_bytes=1024 * 1024, max_depth=50)

# The byte-level tokenizer has a token for each letter; its template adds 18 to a prompt: two special ones around
# "user\n", one at the end with "\n", one with "assistant\n", all by ChatML.
AROUND = len("_user\n" + "_\n" + "_assistant\n")


@pytest.mark.parametrize(
    "tokenizer", [byte_level(), sentence_piece(byte_fallback=True)], ids=["byte level", "marks"]
)
@given(
    texts=st.lists(st.text(min_size=0, max_size=40), min_size=1, max_size=8),
    max_tokens=st.integers(1, 60),
    is_raw=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_what_is_measured_is_what_is_rendered(
    tokenizer: Tokenizer,
    texts: list[str],
    max_tokens: int,
    is_raw: bool,  # noqa: FBT001  given by hypothesis
) -> None:
    """None, and so untokenized, is only what is within the limits."""
    renderer = Renderer(SnapshotTokenizer(snapshot(tokenizer)))
    generations = [Generation(text, None, is_raw, False, max_tokens, {}) for text in texts]
    limits = Limits(60, 90, 100)
    rendered = renderer.render(generations, limits)
    for measured, outcome in zip(renderer.measure(generations, limits), rendered, strict=True):
        if isinstance(outcome, Problem):
            assert measured == outcome
        else:
            assert measured in (None, len(outcome.token_ids))


def test_a_short_line_is_not_tokenized(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = SnapshotTokenizer(snapshot(byte_level()))
    seen: list[str] = []

    def note(texts: Sequence[str], **_: object) -> dict[str, list[list[int]]]:
        seen.extend(texts)
        return {"input_ids": [[1]] * len(texts)}

    monkeypatch.setattr(SnapshotTokenizer, "__call__", lambda _, texts, **others: note(texts, **others))
    limits = card.limits
    most = limits.max_input_length
    generations = [Generation("x" * length, None, True, False, 1, {}) for length in (1, most - 2, most + 1)]
    measured = Renderer(tokenizer).measure(generations, limits)
    assert [len(text) for text in seen] == [most + 1]
    assert measured[:2] == [None, None]


@pytest.fixture
def small(card: Card) -> Card:
    return replace(card, limits=Limits(30, 50, 100))


def admission(card: Card, template: Any = None) -> Admission:
    made = snapshot(byte_level()) if template is None else snapshot(byte_level(), template)
    return Admission(card, SnapshotTokenizer(made))


def check(card: Card, path: Path, template: Any = None) -> Report:
    return validate(card, str(path), LIMITS, admission=admission(card, template))


def test_lines_at_the_limits_pass_and_those_over_them_are_named_with_the_numbers(
    small: Card, write: Any
) -> None:
    most = 30 - AROUND
    report = check(
        small,
        write(
            {"prompt": "x" * most, "max_tokens": 20},
            {"prompt": "x" * most, "max_tokens": 21},
            {"prompt": "x" * (most + 1), "max_tokens": 1},
            {"messages": [{"role": "user", "content": "x" * (most + 1)}], "max_tokens": 1},
            {"prompt": "x" * 29, "raw": True, "max_tokens": 1},
            {"prompt": "x" * 30, "raw": True, "max_tokens": 1},
        ),
    )
    assert report.tokens_checked
    assert [(error.line, error.code, error.message) for error in report.errors] == [
        (
            2,
            "max_total_tokens_exceeded",
            "30 prompt tokens + max_tokens 21 = 51 are more than max_total_tokens (50)",
        ),
        *(
            (line, "input_too_long", "31 prompt tokens are more than max_input_length (30)")
            for line in (3, 4, 6)
        ),
    ]


def test_a_text_that_is_endless_is_refused_before_it_takes_memory(small: Card, write: Any) -> None:
    endless = replace(small, input_schema={"properties": {"prompt": {"type": "string"}}})
    path = write({"prompt": "<|im_start|>" * 1_000_000, "max_tokens": 1})
    limits = replace(LIMITS, max_bytes=2**24)
    (error,) = validate(endless, [str(path)], limits, admission=admission(endless)).errors
    assert error.code == "input_too_long"
    assert error.message == "at least 1,000,005 prompt tokens are more than max_input_length (30)"


def test_the_default_of_max_tokens_counts(small: Card, write: Any) -> None:
    (error,) = check(small, write({"prompt": "x"})).errors
    assert "max_tokens 256" in error.message


def test_the_exact_number_of_tokens_sizes_the_chunks_where_it_had_to_be_known(
    small: Card, card: Card, write: Any
) -> None:
    path = write({"prompt": "xyz", "max_tokens": 7}, {"prompt": "xyz" * 2, "max_tokens": 1}, {"prompt": 5})

    def num_tokens(card: Card, checker: Admission | None) -> list[int]:
        with InputFile(str(path)) as source:
            return [line.num_tokens for line in LineChecker(card, LIMITS, admission=checker).check(source)]

    assert num_tokens(small, admission(small)) == [3 + AROUND + 7, 6 + AROUND + 1, 0]
    assert num_tokens(card, admission(card)) == num_tokens(card, None), "an estimate will do"


def test_bad_lines_keep_their_own_reason_and_the_good_ones_are_measured(small: Card, write: Any) -> None:
    long = {"prompt": "x" * 31, "max_tokens": 1, "custom_id": "a"}
    report = check(small, write({"prompt": 5}, long, b"{", {**long, "prompt": "x"}, {"messages": []}))
    assert [(error.line, error.code) for error in report.errors] == [
        (1, "invalid_request"),
        (2, "input_too_long"),
        (3, "invalid_json"),
        (4, "duplicate_custom_id"),
        (5, "invalid_messages"),
    ]


def test_what_only_the_template_can_tell_is_told_in_its_author_s_words(card: Card, write: Any) -> None:
    turns = [{"role": role, "content": "zxq"} for role in ("user", "assistant", "user")]
    report = check(card, write({"messages": turns}, {"messages": turns[1:]}, {"prompt": "x"}), ALTERNATING)
    assert [(error.line, error.code, error.path) for error in report.errors] == [
        (2, "invalid_messages", "messages")
    ]
    assert report.errors[0].message == (
        "the model's chat template refuses them (user and assistant must take turns)"
    )


@pytest.mark.parametrize(
    "template", ["{{ raise_exception(messages[0].content) }}", "{{ messages[0].content.x.y }}"]
)
def test_no_refusal_quotes_a_message(card: Card, write: Any, template: str) -> None:
    (error,) = check(card, write({"prompt": "zxq"}), template).errors
    assert error.code == "invalid_messages"
    assert "zxq" not in error.message


def test_a_model_without_a_template_takes_raw_prompts_only(card: Card, write: Any) -> None:
    report = check(card, write({"prompt": "x"}, {"prompt": "x", "raw": True}), "")
    assert [(error.line, error.message) for error in report.errors] == [
        (1, "the model has no chat template; give a prompt with raw: true")
    ]


# where the tokenizer is


@pytest.fixture
def local(card: Card, tmp_path: Path) -> Card:
    return replace(card, local_weights=str(write_weights(tmp_path / "weights", byte_level())))


def modes(card: Card, settings: Settings, *names: str) -> list[bool]:
    return [open_admission(card, settings, CheckTokens(name))[0] is not None for name in names]


def test_a_local_model_is_checked_and_one_on_the_hub_only_when_asked(
    local: Card, card: Card, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert modes(local, settings, "never", "if local", "if possible", "always") == [False, True, True, True]
    monkeypatch.setattr("jobs.tokenizers._load_whole", lambda _: SnapshotTokenizer(snapshot(byte_level())))
    assert modes(card, settings, "never", "if local", "if possible", "always") == [False, False, True, True]


def test_the_echo_engine_s_tokens_are_words_and_are_not_checked_by_default(
    local: Card, settings: Settings
) -> None:
    echo = settings.model_copy(update={"engine": "echo"})
    assert modes(local, echo, "if local", "if possible", "always") == [False, False, True]


def test_a_tokenizer_that_cannot_be_loaded_is_a_warning_unless_asked_for(
    card: Card, settings: Settings, tmp_path: Path, sqlite_database: Database, write: Any
) -> None:
    (tmp_path / "empty").mkdir()
    broken = replace(card, local_weights=str(tmp_path / "empty"))
    found, note = open_admission(broken, settings)
    assert found is None
    assert note is not None
    assert "the tokenizer of hermes-2-pro-mistral-7b cannot be loaded" in note
    with pytest.raises(CardError, match="--no-check-tokens goes on without it"):
        open_admission(broken, settings, CheckTokens.ALWAYS)
    submitted = submit(sqlite_database, settings, broken, str(write({"prompt": "x"})), SubmitOptions())
    assert submitted.report is not None
    assert (submitted.report.tokens_checked, submitted.report.notes) == (False, [note])


def test_a_submit_finds_them_and_stores_nothing(
    local: Card, settings: Settings, sqlite_database: Database, write: Any
) -> None:
    path = write({"prompt": "x"}, {"prompt": "y" * 3_072})
    with pytest.raises(InputRefusedError) as refused:
        submit(sqlite_database, settings, local, str(path), SubmitOptions())
    assert [error.code for error in refused.value.report.errors] == ["input_too_long"]
