"""Model cards: the page's own format is read as it stands, and whatever is no card is refused by field."""

import hashlib
import json
import re
import stat
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from db.errors import CardError, NotFoundError
from jobs.cards import Card, Limits, add_card, describe_card, find_card, list_cards, parse_card

ROOT = Path(__file__).parents[2]
SEED = ROOT.parent / "shared/seed/hermes-2-pro-mistral-7b.md"
HERMES = "hermes-2-pro-mistral-7b"
SMALL = "smollm2-135m-instruct"

Fields = dict[str, Any]
INPUT: Fields = {
    "type": "object",
    "properties": {"prompt": {"type": "string"}, "max_tokens": {"type": "integer", "default": 16}},
    "required": ["prompt"],
}
FIELDS: Fields = {
    "model": {
        "id": "0f0e-id",
        "name": "@lab/owl",
        "description": "A model that these tests made up.",
        "properties": [
            {"property_id": "info", "value": "https://huggingface.co/lab/Owl-1B"},
            {"property_id": "max_input_length", "value": "100"},
            {"property_id": "max_total_tokens", "value": "160"},
            {"property_id": "max_batch_prefill_tokens", "value": "400"},
        ],
    },
    "model_display_name": "owl",
    "task_type": "text-generation",
    "json_schema": {"input": json.dumps(INPUT), "output": '{"type": "object"}'},
}
# A page in the same form as those of the catalogue: YAML in front, Markdown behind.
PAGE = """\
---
model:
  id: "0f0e-id"
  name: "@lab/owl"
  task: {name: "Text Generation"}
  properties:
    - property_id: "max_batch_prefill_tokens"
      value: "400"
    - property_id: "max_input_length"
      value: "100"
    - property_id: "max_total_tokens"
      value: "160"
    - property_id: "info"
      value: "https://huggingface.co/lab/Owl-1B/"
task_type: "text-generation"
model_display_name: "owl"
layout: "model"
weight: 0
json_schema:
  input: "{\\"type\\": \\"object\\", \\"properties\\": {\\"prompt\\": {\\"type\\": \\"string\\"}}}"
  output: "{}"

---

# Owl

It sees at night: *mostly*. ---
A heading follows

---
## And `code: {with braces`
"""


def card_text(change: Callable[[Fields], object] | None = None) -> str:
    fields = deepcopy(FIELDS)
    if change is not None:
        change(fields)
    return yaml.safe_dump(fields, sort_keys=False)


def set_limit(name: str, value: object) -> Callable[[Fields], None]:
    def change(fields: Fields) -> None:
        for entry in fields["model"]["properties"]:
            if entry["property_id"] == name:
                entry["value"] = value

    return change


def set_input(text: str) -> Callable[[Fields], None]:
    return lambda fields: fields["json_schema"].update(input=text)


def set_own(**own: object) -> Callable[[Fields], None]:
    return lambda fields: fields.update(promptmill=own)


def card_file(folder: Path, name: str = "owl.yaml", text: str | bytes | None = None) -> Path:
    path = folder / name
    content = card_text() if text is None else text
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# the cards that come with promptmill


def test_the_built_in_cards_load() -> None:
    cards = {card.name: card for card in list_cards(Path("no-home"))}
    assert set(cards) == {HERMES, SMALL}
    assert cards[HERMES].limits == Limits(3072, 4096, 8192)
    assert cards[HERMES].hub_id == "NousResearch/Hermes-2-Pro-Mistral-7B"
    assert cards[SMALL].limits == Limits(1536, 2048, 4096)
    assert cards[SMALL].sampling == {"temperature": 0}


def test_both_cards_take_the_same_requests() -> None:
    hermes, small = (find_card(Path("no-home"), name) for name in (HERMES, SMALL))
    assert hermes.input_schema == small.input_schema
    assert hermes.output_schema == small.output_schema


@pytest.mark.skipif(not SEED.is_file(), reason="the model page is not beside this checkout")
def test_the_hermes_card_says_what_its_page_says(home: Path) -> None:
    ours = find_card(home, HERMES)
    page = parse_card(SEED.read_text("utf-8"), SEED.name)
    for name in ("name", "full_name", "id", "limits", "input_schema", "output_schema", "hub_id"):
        assert getattr(ours, name) == getattr(page, name), name


@pytest.mark.skipif(not SEED.is_file(), reason="the model page is not beside this checkout")
def test_the_page_itself_is_added_unchanged_and_then_hides_ours(home: Path) -> None:
    added = add_card(home, SEED)
    assert (home / "cards" / SEED.name).read_bytes() == SEED.read_bytes()
    assert find_card(home, HERMES) == added
    assert [card.name for card in list_cards(home)] == [HERMES, SMALL]


# the format


def test_a_page_with_front_matter_is_a_card() -> None:
    card = parse_card(PAGE, "owl.md")
    assert (card.name, card.full_name, card.id) == ("owl", "@lab/owl", "0f0e-id")
    assert card.limits == Limits(max_input_length=100, max_total_tokens=160, max_batch_prefill_tokens=400)
    assert card.hub_id == "lab/Owl-1B"
    assert card.input_schema["properties"] == {"prompt": {"type": "string"}}
    assert (card.local_weights, card.engine_args, card.sampling) == (None, {}, {})


@pytest.mark.parametrize(
    "text",
    [
        card_text(),
        "---\n" + card_text(),
        "\ufeff" + card_text(),
        "\ufeff" + PAGE,
        PAGE.replace("\n", "\r\n"),
        card_text().replace("\n", "\r\n"),
        PAGE.replace("---\n", "---  \n"),
    ],
    ids=["yaml", "document-marker", "bom", "bom-page", "crlf-page", "crlf", "trailing-space"],
)
def test_every_way_to_write_the_same_card_is_read(text: str) -> None:
    card = parse_card(text, "owl")
    assert (card.name, card.limits) == ("owl", Limits(100, 160, 400))


def test_fields_that_promptmill_does_not_know_are_the_page_s_own_business() -> None:
    card = parse_card(card_text(lambda fields: fields.update(layout="model", beta=[1, {"x": None}])), "owl")
    assert card.name == "owl"


def test_what_the_format_has_no_field_for_stands_under_one_key_of_ours() -> None:
    own = {"weights": "models/owl", "engine_args": {"quantization": "awq"}, "sampling": {"top_p": 0.9}}
    card = parse_card(card_text(set_own(**own)), "owl")
    assert card.local_weights == "models/owl"
    assert card.engine_args == {"quantization": "awq"}
    assert card.sampling == {"top_p": 0.9}


def test_the_sha256_is_that_of_the_file() -> None:
    assert parse_card(PAGE, "owl").sha256 == hashlib.sha256(PAGE.encode()).hexdigest()


def test_forms_may_share_definitions() -> None:
    schema = {
        "$defs": {"text": {"type": "string"}},
        "oneOf": [{"properties": {"prompt": {"$ref": "#/$defs/text"}}, "required": ["prompt"]}],
    }
    assert parse_card(card_text(set_input(json.dumps(schema))), "owl").input_schema == schema


# what is no card


BROKEN: dict[str, tuple[str, str]] = {
    "empty": ("", "mapping that has model, model_display_name and json_schema"),
    "a list": ("- model", "mapping that has model"),
    "no YAML": ("model: {", "is not YAML in line"),
    "prose only": ("# Owl\n\nSees at night.\n", "mapping that has model"),
    "front matter never closed": (
        "---\n" + card_text() + "\n# Owl\n\nIt sees at night.\n",
        "is not YAML in line",
    ),
    "a ruler and no front matter": ("----\n" + card_text(), "is not YAML in line 2"),
    "YAML on the line of the marker": ("--- {}\n" + card_text(), "is not YAML"),
    "a NUL": ("model: \0", "is not YAML"),
    "a tag that runs code": ("model: !!python/object/apply:os.getcwd []", "is not YAML in line 1"),
    "a date that is none": ("layout: 2024-13-45\n" + card_text(), "is not YAML: month"),
    "a number without end": ("layout: " + "9" * 5000 + "\n" + card_text(), "is not YAML"),
    "depth without end": ("layout: " + "[" * 5000 + "]" * 5000, "is not YAML"),
    "no model": (card_text(lambda fields: fields.pop("model")), "owl.md: model: Field required"),
    "no id": (card_text(lambda fields: fields["model"].pop("id")), "model.id: Field required"),
    "no display name": (
        card_text(lambda fields: fields.pop("model_display_name")),
        "model_display_name: Field required",
    ),
    "no schema": (card_text(lambda fields: fields.pop("json_schema")), "json_schema: Field required"),
    "no input schema": (
        card_text(lambda fields: fields["json_schema"].pop("input")),
        "json_schema.input: Field required",
    ),
    "no output schema": (
        card_text(lambda fields: fields["json_schema"].pop("output")),
        "json_schema.output: Field required",
    ),
    "a name that is a path": (
        card_text(lambda fields: fields.update(model_display_name="../owl")),
        "model_display_name may hold",
    ),
    "a name that is an option": (
        card_text(lambda fields: fields.update(model_display_name="-owl")),
        "model_display_name may hold",
    ),
    "another task": (
        card_text(lambda fields: fields.update(task_type="text-to-image")),
        "task_type is text-to-image; only text-generation is run",
    ),
    "no limits": (card_text(lambda fields: fields["model"].pop("properties")), "property max_input_length"),
    "properties of another shape": (
        card_text(lambda fields: fields["model"].update(properties=[{"max_input_length": 1}])),
        "model.properties.0.property_id: Field required",
    ),
    "a limit in words": (card_text(set_limit("max_input_length", "many")), "property max_input_length"),
    "a limit of zero": (card_text(set_limit("max_total_tokens", "0")), "property max_total_tokens"),
    "a limit below zero": (card_text(set_limit("max_total_tokens", "-5")), "property max_total_tokens"),
    "a limit with a fraction": (card_text(set_limit("max_total_tokens", "4.0")), "property max_total_tokens"),
    "a limit in other digits": (card_text(set_limit("max_input_length", "٣٣")), "property max_input_length"),
    "a limit without end": (
        card_text(set_limit("max_batch_prefill_tokens", "9" * 5000)),
        "property max_batch_prefill_tokens",
    ),
    "a limit that is no text": (
        card_text(set_limit("max_input_length", 100)),
        "model.properties.1.value: Input should be a valid string",
    ),
    "no room for a completion": (
        card_text(set_limit("max_total_tokens", "100")),
        "max_total_tokens must be greater than max_input_length",
    ),
    "a schema that is no JSON": (card_text(set_input("{")), "json_schema.input is not JSON"),
    "a schema that is no object": (card_text(set_input("[]")), "json_schema.input must be a JSON object"),
    "a schema of no known type": (
        card_text(set_input('{"type": "objekt"}')),
        "json_schema.input is not a JSON Schema",
    ),
    "a schema with a bad pattern": (
        card_text(set_input('{"properties": {"prompt": {"pattern": "["}}}')),
        "json_schema.input is not a JSON Schema",
    ),
    "a schema without a bottom": (
        card_text(set_input('{"not":' * 5000 + "1" + "}" * 5000)),
        "json_schema.input is not JSON",
    ),
    "a schema from the network": (
        card_text(set_input('{"$ref": "http://127.0.0.1:9/schema.json"}')),
        "refers to nothing outside itself",
    ),
    "a schema from another file": (
        card_text(set_input('{"$ref": "file:///owl.json"}')),
        "refers to nothing outside itself",
    ),
    "a schema that refers to nothing": (
        card_text(set_input('{"oneOf": [{"properties": {"prompt": {"$ref": "#/$defs/x"}}}]}')),
        "json_schema.input",
    ),
    "forms that are no objects": (
        card_text(set_input('{"oneOf": [true, {}]}')),
        "json_schema.input: its forms",
    ),
    "a schema of something else": (
        card_text(set_input('{"properties": {"image": {"type": "string"}}}')),
        "json_schema.input: neither prompt nor messages",
    ),
    "a bad output schema": (
        card_text(lambda fields: fields["json_schema"].update(output='{"oneOf": 1}')),
        "json_schema.output is not a JSON Schema",
    ),
    "a misspelt key of ours": (card_text(set_own(weight="x")), "promptmill.weight: Extra inputs"),
    "our key without anything": (
        card_text(lambda fields: fields.update(promptmill=None)),
        "promptmill: Input should be a valid dictionary",
    ),
    "misspelt sampling": (card_text(set_own(sampling={"temprature": 1})), "promptmill.sampling.temprature"),
    "sampling out of range": (card_text(set_own(sampling={"top_p": 5})), "promptmill.sampling.top_p"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_card_is_refused_by_the_field_that_breaks_it(what: str) -> None:
    text, words = BROKEN[what]
    with pytest.raises(CardError, match=re.escape(words)) as caught:
        parse_card(text, "owl.md")
    assert str(caught.value).startswith("owl.md")
    assert "_" + "Page" not in str(caught.value), "a class of ours says nothing to the card's author"


@pytest.mark.parametrize("what", ["no YAML", "no limits", "a schema that is no JSON"])
def test_a_broken_card_is_not_added(home: Path, tmp_path: Path, what: str) -> None:
    with pytest.raises(CardError, match=re.escape(BROKEN[what][1])):
        add_card(home, card_file(tmp_path, text=BROKEN[what][0]))
    assert not (home / "cards").exists()


def test_a_file_that_is_not_utf8_is_no_card(home: Path, tmp_path: Path) -> None:
    with pytest.raises(CardError, match="is not UTF-8 text"):
        add_card(home, card_file(tmp_path, text=card_text().encode() + b"# \xff\n"))


def test_a_file_too_large_for_a_card_is_not_read(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "owl.yaml"
    with path.open("wb") as file:
        file.truncate(1024**3)
    with pytest.raises(CardError, match="larger than a card may be"):
        add_card(home, path)


def test_a_missing_file_and_a_folder_are_no_cards(home: Path, tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"cannot read the card .*none\.yaml: No such file"):
        add_card(home, tmp_path / "none.yaml")
    with pytest.raises(CardError, match=r"cannot read the card .*: Is a directory"):
        add_card(home, tmp_path)


# adding


@pytest.mark.parametrize("name", ["owl.yaml", "owl.yml", "page.md", "owl.txt", "owl"])
@pytest.mark.parametrize("text", [PAGE, PAGE.replace("\n", "\r\n"), "\ufeff" + PAGE])
def test_a_card_is_kept_byte_for_byte_and_for_its_owner_only(
    home: Path, tmp_path: Path, name: str, text: str
) -> None:
    path = card_file(tmp_path, name, text)
    card = add_card(home, path)
    (kept,) = (home / "cards").iterdir()
    assert kept.read_bytes() == path.read_bytes()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert find_card(home, "owl") == card, "what was added is found"


def test_the_same_file_again_changes_nothing(home: Path, tmp_path: Path) -> None:
    path = card_file(tmp_path)
    first = add_card(home, path)
    assert add_card(home, path) == first
    assert [file.name for file in (home / "cards").iterdir()] == ["owl.yaml"]


def test_another_card_of_that_name_is_refused_unless_it_shall_replace_the_first(
    home: Path, tmp_path: Path
) -> None:
    first = add_card(home, card_file(tmp_path))
    other = card_file(tmp_path, "other.md", PAGE)
    with pytest.raises(CardError, match=r"another card owl .*--replace"):
        add_card(home, other)
    assert find_card(home, "owl") == first
    replaced = add_card(home, other, replace=True)
    assert find_card(home, "owl") == replaced
    assert [file.name for file in (home / "cards").iterdir()] == ["owl.md"], "one file a card"


def test_a_home_that_cannot_hold_cards_is_an_error(home: Path, tmp_path: Path) -> None:
    (home / "cards").write_text("in the way")
    with pytest.raises(CardError, match="cannot keep the card in"):
        add_card(home, card_file(tmp_path))


# finding


@pytest.mark.parametrize("name", ["owl", "@lab/owl", "0f0e-id"])
def test_a_card_is_found_by_each_of_its_names(home: Path, tmp_path: Path, name: str) -> None:
    add_card(home, card_file(tmp_path))
    assert find_card(home, name).name == "owl"


def test_an_unknown_card_is_answered_with_those_there_are(home: Path, tmp_path: Path) -> None:
    add_card(home, card_file(tmp_path))
    with pytest.raises(NotFoundError, match=f"no model card mistral; there are: {HERMES}, owl, {SMALL}"):
        find_card(home, "mistral")


def test_cards_are_listed_by_name(home: Path, tmp_path: Path) -> None:
    add_card(home, card_file(tmp_path))
    assert [card.name for card in list_cards(home)] == [HERMES, "owl", SMALL]


def test_a_card_that_was_broken_later_is_named(home: Path, tmp_path: Path) -> None:
    add_card(home, card_file(tmp_path))
    (home / "cards" / "owl.yaml").write_text("model: {")
    with pytest.raises(CardError, match=r"cards/owl\.yaml is not YAML"):
        list_cards(home)


# weights


def owl(**own: object) -> Card:
    return parse_card(card_text(set_own(**own)), "owl")


def test_weights_are_the_hub_s_when_nothing_is_nearer(home: Path) -> None:
    assert owl().weights(home) == "lab/Owl-1B"


def test_weights_in_the_home_folder_go_before_the_hub_s(home: Path) -> None:
    (home / "weights" / "owl").mkdir(parents=True)
    assert owl().weights(home) == str(home / "weights" / "owl")


def test_the_card_s_own_path_goes_before_all(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "weights" / "owl").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    assert owl(weights="~/models/owl").weights(home) == f"{home}/models/owl"


def test_a_card_is_found_by_an_alias_that_no_other_card_is_called(home: Path) -> None:
    (home / "cards").mkdir()
    (home / "cards" / "owl.yaml").write_text(card_text(set_own(aliases=["bird", HERMES])))
    assert find_card(home, "bird").name == "owl"
    assert find_card(home, HERMES).name == HERMES
    assert {"owl", "@lab/owl", "lab/Owl-1B", "bird"} <= find_card(home, "owl").names


@pytest.mark.parametrize("info", ["https://example.org/owl", "https://huggingface.co/lab", ""])
def test_a_card_that_names_no_weights_says_where_to_put_them(home: Path, info: str) -> None:
    card = parse_card(card_text(set_limit("info", info)), "owl")
    assert card.hub_id is None
    with pytest.raises(CardError, match=r"weights/owl, or set promptmill\.weights"):
        card.weights(home)
    assert describe_card(card, home)["weights"] is None


def test_a_card_describes_itself_as_the_contract_says(home: Path) -> None:
    described = describe_card(owl(sampling={"seed": 7}), home)
    assert json.loads(json.dumps(described)) == {
        "name": "owl",
        "full_name": "@lab/owl",
        "id": "0f0e-id",
        "sha256": owl(sampling={"seed": 7}).sha256,
        "limits": {"max_input_length": 100, "max_total_tokens": 160, "max_batch_prefill_tokens": 400},
        "weights": "lab/Owl-1B",
        "engine_args": {},
        "sampling": {"seed": 7},
        "aliases": [],
        "input_schema": INPUT,
        "output_schema": {"type": "object"},
    }
