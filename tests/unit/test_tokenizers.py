"""A snapshot gives the ids and the texts of the tokenizer that it is of, whatever the text."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError, UndefinedError
from small_tokenizers import ALTERNATING, byte_level, sentence_piece, snapshot, write_weights
from tokenizers import Tokenizer, normalizers

from jobs.chat_template import ChatTemplate
from jobs.tokenizers import SnapshotTokenizer, load_tokenizer

KINDS: dict[str, Tokenizer] = {
    "byte level": byte_level(),
    "marks by a normalizer": sentence_piece(),
    "marks and bytes": sentence_piece(byte_fallback=True),
    "marks for parts, and bytes": sentence_piece(scheme="always", byte_fallback=True),
    "a mark for each part": sentence_piece(scheme="always"),
    "a mark for the text": sentence_piece(scheme="first"),
    "special tokens that take spaces": byte_level(lstrip=True, rstrip=True),
    "special tokens that are words": byte_level(single_word=True),
}
SNAPSHOTS = {name: SnapshotTokenizer(snapshot(tokenizer)) for name, tokenizer in KINDS.items()}
fragments = st.sampled_from(
    [
        "<s>",
        "</s>",
        "<|im_start|>",
        "<|im_end|>",
        "<|im_",
        "<s",
        " ",
        "  ",
        "\n",
        "he",
        "hello",
        "user\n",
        "é😀",
        "\0",
    ]
)
texts = st.lists(fragments | st.text(max_size=5), max_size=9).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@given(batch=st.lists(texts, max_size=5))
@settings(max_examples=60, deadline=None)
def test_the_ids_are_the_tokenizer_s_own(kind: str, batch: list[str]) -> None:
    for is_raw in (False, True):
        expected = [KINDS[kind].encode(text, add_special_tokens=is_raw).ids for text in batch]
        # twice: what comes again is remembered
        for _ in range(2):
            assert SNAPSHOTS[kind](batch + batch, add_special_tokens=is_raw) == {
                "input_ids": expected + expected
            }


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "byte" in kind or "special" in kind])
@given(text=texts)
@settings(max_examples=100, deadline=None)
def test_a_text_has_no_more_tokens_than_its_length_says(kind: str, text: str) -> None:
    for is_raw in (False, True):
        (ids,) = SNAPSHOTS[kind]([text], add_special_tokens=is_raw)["input_ids"]
        at_most = SNAPSHOTS[kind].max_tokens(text, add_special_tokens=is_raw)
        assert at_most is not None
        assert len(ids) <= at_most


def test_where_texts_are_changed_before_their_length_says_nothing() -> None:
    for normalizer in (normalizers.NFKC(), normalizers.Replace("x", "yz"), normalizers.Prepend("ab")):
        tokenizer = byte_level()
        tokenizer.normalizer = normalizer
        assert SnapshotTokenizer(snapshot(tokenizer)).max_tokens("x", add_special_tokens=False) is None


@pytest.mark.parametrize(
    ("kind", "max_chars"),
    [
        ("byte level", len("<|im_start|>")),
        ("marks and bytes", len("<|im_start|>")),
        ("marks by a normalizer", None),
    ],
)
@given(text=texts)
@settings(max_examples=60, deadline=None)
def test_no_token_stands_for_more_characters_than_it_is_said(
    kind: str, max_chars: int | None, text: str
) -> None:
    assert SNAPSHOTS[kind].max_token_chars == max_chars
    if max_chars is not None:
        (ids,) = SNAPSHOTS[kind]([text], add_special_tokens=False)["input_ids"]
        assert len(ids) * max_chars >= len(text)


def test_what_is_remembered_is_bounded() -> None:
    tokenizer = SnapshotTokenizer(snapshot(KINDS["byte level"]))
    for first in range(0, 5_000, 500):
        tokenizer([f"{number}<s>{number}" for number in range(first, first + 500)], add_special_tokens=False)
        tokenizer(["x" * 10_000 + "<s>"] * 2, add_special_tokens=False)
        assert len(tokenizer._kept) <= 1_000
        assert max(map(len, tokenizer._kept)) < 10_000


# from a folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "weights", byte_level())


def test_the_first_load_leaves_a_snapshot_and_the_next_takes_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = [load_tokenizer(str(folder), tmp_path / "snapshots")]
    (path,) = (tmp_path / "snapshots").iterdir()
    assert path.stat().st_mode & 0o077 == 0
    monkeypatch.setattr("jobs.tokenizers._load_whole", lambda _: pytest.fail("there is a snapshot"))
    loaded.append(load_tokenizer(str(folder), tmp_path / "snapshots"))
    for tokenizer in loaded:
        assert tokenizer(["hello"], add_special_tokens=True)["input_ids"] == [
            KINDS["byte level"].encode("hello").ids
        ]
        assert tokenizer.apply_chat_template([[{"role": "user", "content": "x"}]]) == [
            "<|im_start|>user\nx<|im_end|>\n"
        ]


@pytest.mark.parametrize("damage", ["another tokenizer", "not JSON"])
def test_a_snapshot_that_is_old_or_damaged_is_made_anew(folder: Path, tmp_path: Path, damage: str) -> None:
    load_tokenizer(str(folder), tmp_path / "snapshots")
    (path,) = (tmp_path / "snapshots").iterdir()
    if damage == "not JSON":
        path.write_text("{")
    else:
        write_weights(folder, sentence_piece())
    tokenizer = load_tokenizer(str(folder), tmp_path / "snapshots")
    expected = sentence_piece() if damage == "another tokenizer" else byte_level()
    assert tokenizer(["hello"], add_special_tokens=True)["input_ids"] == [expected.encode("hello").ids]
    assert len(list((tmp_path / "snapshots").iterdir())) == 1


def test_without_a_place_for_the_snapshot_it_loads_all_the_same(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert load_tokenizer(str(folder), tmp_path / "file")(["h"], add_special_tokens=False)["input_ids"]


# the template


def test_a_template_has_what_transformers_gives_it() -> None:
    source = (
        "{{ bos_token }}\n{% for message in messages %}\n{% if loop.first %}{% continue %}{% endif %}"
        "{% generation %}{{ message | tojson }}{% endgeneration %}{% endfor %}{{ strftime_now('%%') }}{{ documents }}"
    )
    messages: list[Any] = [{"role": "user"}, {"content": "<é>"}]
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(messages) == '<s>\n{"content": "<é>"}%None'


def test_a_template_of_several_has_one_for_tools() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "{{ tools[0] }}"}, {})
    assert (template.render([]), template.render([], tools=["a"])) == ("plain", "a")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (ALTERNATING, TemplateError),
        ("{{ messages[0].content.x.y }}", UndefinedError),
        ("{{ messages.append(1) }}", TemplateError),
        ("{{ ''.__class__.__mro__ }}", TemplateError),
    ],
)
def test_a_template_refuses_and_does_no_harm(source: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        ChatTemplate(source, {}).render([{"role": "assistant", "content": "x"}])
