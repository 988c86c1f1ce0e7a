"""Model cards: a model's request and output schema, its limits, and where its weights are.

The format is that of a Workers AI model page: YAML, or Markdown with YAML front matter, where `json_schema.input`
and `.output` are JSON text. The limits have the meaning that text-generation-inference gives their names.
What the format has no field for stands beside it under `promptmill`: weights, engine_args, sampling, aliases.
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from db.errors import CardError, NotFoundError, why

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_HUB_PAGE = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/?")
_SUFFIXES = (".yaml", ".yml", ".md")
_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
# nine digits are more tokens than any model takes
_LIMIT = re.compile(r"0*[1-9][0-9]{0,8}", re.ASCII)
_MAX_CARD_BYTES = 1024 * 1024


class _Property(BaseModel):
    property_id: str
    value: str


class _Model(BaseModel):
    id: str
    name: str
    description: str = ""
    properties: list[_Property] = []


class _JsonSchema(BaseModel):
    input: str
    output: str


class _Own(BaseModel):
    """What promptmill adds to the format; unlike the page's own fields, a misspelt one is refused."""

    model_config = ConfigDict(extra="forbid")

    weights: str | None = None
    engine_args: dict[str, Any] = {}
    sampling: dict[str, Any] = {}
    aliases: list[str] = []


class _Page(BaseModel):
    model: _Model
    model_display_name: str
    task_type: str = "text-generation"
    json_schema: _JsonSchema
    promptmill: _Own = Field(default_factory=_Own)


@dataclass(frozen=True)
class Limits:
    """In tokens, as text-generation-inference defines them.

    max_input_length          the most prompt tokens of a request
    max_total_tokens          the most prompt tokens + max_tokens of a request (vLLM: max_model_len)
    max_batch_prefill_tokens  the most prompt tokens in one prefill step (vLLM: max_num_batched_tokens)
    """

    max_input_length: int
    max_total_tokens: int
    max_batch_prefill_tokens: int


@dataclass(frozen=True)
class Card:
    """One model. `text` is the card as YAML, which a job keeps: the rest is read from it."""

    text: str
    name: str
    full_name: str
    id: str
    limits: Limits
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    hub_id: str | None
    local_weights: str | None
    engine_args: dict[str, Any]
    sampling: dict[str, Any]
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """What the card and its model are called, in an option or in a file."""
        hub_ids = (self.hub_id,) if self.hub_id else ()
        return frozenset({self.name, self.full_name, self.id, *hub_ids, *self.aliases})

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def weights(self, home: Path) -> str:
        """A folder, or an id on the Hugging Face hub: the card's own path, else the home's
        `weights/NAME`, else the hub's."""
        if self.local_weights is not None:
            return str(Path(self.local_weights).expanduser())
        local = home / "weights" / self.name
        if local.is_dir():
            return str(local)
        if self.hub_id is None:
            raise CardError(
                f"card {self.name} names no weights; put them into {local}, or set promptmill.weights in it"
            )
        return self.hub_id


def parse_card(text: str, where: str) -> Card:
    """Read a card; CardError says which field of `where` is missing or wrong."""
    fields = _load_yaml(text, where)
    try:
        page = _Page.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise CardError(
            f"{where}: {'.'.join(map(str, first['loc']))}: {_without_class(first['msg'])}"
        ) from None
    if page.task_type != "text-generation":
        raise CardError(f"{where}: task_type is {page.task_type}; only text-generation is run")
    if not _NAME.fullmatch(page.model_display_name):
        raise CardError(f"{where}: model_display_name may hold a-z, 0-9, '.', '_' and '-' only")
    properties = {entry.property_id: entry.value for entry in page.model.properties}
    hub_page = _HUB_PAGE.fullmatch(properties.get("info", ""))
    return Card(
        text=text,
        name=page.model_display_name,
        full_name=page.model.name,
        id=page.model.id,
        limits=_limits(properties, where),
        input_schema=_input_schema(page.json_schema.input, f"{where}: json_schema.input"),
        output_schema=_schema(page.json_schema.output, f"{where}: json_schema.output"),
        hub_id=hub_page[1] if hub_page else None,
        local_weights=page.promptmill.weights,
        engine_args=page.promptmill.engine_args,
        sampling=_sampling(page.promptmill.sampling, f"{where}: promptmill.sampling"),
        aliases=tuple(page.promptmill.aliases),
    )


def _load_yaml(text: str, where: str) -> dict[str, Any]:
    text = text.removeprefix("\ufeff")
    front_matter = _FRONT_MATTER.match(text)
    try:
        # without a second --- the first one only marks where a YAML document starts
        fields = yaml.safe_load(front_matter[1] if front_matter else text)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise CardError(f"{where} is not YAML{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CardError(f"{where} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(fields, dict):
        raise CardError(f"{where}: a card is a mapping that has model, model_display_name and json_schema")
    return fields


def _without_class(message: str) -> str:
    """pydantic names our class, which says nothing to the card's author."""
    return message.partition(" or instance of ")[0]


def _sampling(values: dict[str, Any], where: str) -> dict[str, Any]:
    from jobs.generation import check_defaults

    for problem in check_defaults(values):
        raise CardError(f"{where}.{problem.path}: {problem.message}")
    return values


def _limits(properties: dict[str, str], where: str) -> Limits:
    values = {}
    for name in ("max_input_length", "max_total_tokens", "max_batch_prefill_tokens"):
        text = properties.get(name, "")
        if not _LIMIT.fullmatch(text):
            raise CardError(f"{where}: property {name} must be a positive whole number of up to nine digits")
        values[name] = int(text)
    limits = Limits(**values)
    if limits.max_input_length >= limits.max_total_tokens:
        raise CardError(f"{where}: max_total_tokens must be greater than max_input_length")
    return limits


def _schema(text: str, where: str) -> dict[str, Any]:
    from jobs.schema import check_schema

    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CardError(f"{where} is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise CardError(f"{where} must be a JSON object")
    check_schema(schema, where)
    return schema


def _input_schema(text: str, where: str) -> dict[str, Any]:
    from jobs.schema import RequestSchema

    schema = _schema(text, where)
    try:
        known_fields = RequestSchema(schema).known_fields
    except ValueError as error:
        raise CardError(f"{where}: {getattr(error, 'message', error)}") from None
    if known_fields.isdisjoint({"prompt", "messages"}):
        raise CardError(
            f"{where}: neither prompt nor messages is among its properties, or those of its forms"
        )
    return schema


def list_cards(home: Path) -> list[Card]:
    """Every card, by name; one in the home folder hides the one of that name that comes with promptmill."""
    cards = {card.name: card for card in [*_built_in(), *_added(home)]}
    return [cards[name] for name in sorted(cards)]


def _built_in() -> list[Card]:
    files = [file for file in resources.files("jobs.cards").iterdir() if file.name.endswith(".yaml")]
    return [parse_card(file.read_text("utf-8"), file.name) for file in files]


def _added(home: Path) -> list[Card]:
    folder = home / "cards"
    try:
        files = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise CardError(f"cannot look into {folder}: {why(error)}") from error
    try:
        return [parse_card(_read(file), str(file)) for file in files if file.suffix in _SUFFIXES]
    except CardError as error:
        raise CardError(f"{error}. Mend that file, or take it out of {folder}") from None


def find_card(home: Path, name: str) -> Card:
    """A card by its model_display_name, its full name, its id or an alias; NotFoundError lists the names there are."""
    cards = list_cards(home)
    for card in cards:
        if name in (card.name, card.full_name, card.id):
            return card
    for card in cards:
        if name in card.aliases:
            return card
    names = ", ".join(card.name for card in cards)
    raise NotFoundError(
        f"there is no model card {name}; there are: {names}. promptmill models add FILE adds one"
    )


def add_card(home: Path, path: Path, *, replace: bool = False) -> Card:
    """Check a card file and keep it, unchanged, in the home folder. Adding the same file again does nothing."""
    text = _read(path)
    card = parse_card(text, str(path))
    folder = home / "cards"
    target = folder / f"{card.name}{path.suffix if path.suffix in _SUFFIXES else '.yaml'}"
    there = [folder / f"{card.name}{suffix}" for suffix in _SUFFIXES]
    there = [file for file in there if file.exists()]
    if there and not replace and any(_read(file) != text for file in there):
        raise CardError(
            f"there is another card {card.name} at {there[0]}; --replace puts this one in its place"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = folder / f".{target.name}.{os.getpid()}"
        temporary.write_bytes(text.encode())
        temporary.chmod(0o600)
        temporary.replace(target)
        for file in there:
            if file != target:
                file.unlink()
    except OSError as error:
        raise CardError(f"cannot keep the card in {folder}: {why(error)}") from error
    return card


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_CARD_BYTES:
            raise CardError(f"{path} is larger than a card may be ({_MAX_CARD_BYTES:,} bytes)")
        # not read_text, which would change the line ends of a file from Windows
        return path.read_bytes().decode()
    except OSError as error:
        raise CardError(f"cannot read the card {path}: {why(error)}") from error
    except UnicodeDecodeError as error:
        raise CardError(f"{path} is not UTF-8 text; save it as UTF-8") from error


def describe_card(card: Card, home: Path) -> dict[str, Any]:
    """What `models show --json` prints."""
    try:
        weights: str | None = card.weights(home)
    except CardError:
        weights = None
    return {
        "name": card.name,
        "full_name": card.full_name,
        "id": card.id,
        "sha256": card.sha256,
        "limits": asdict(card.limits),
        "weights": weights,
        "engine_args": card.engine_args,
        "sampling": card.sampling,
        "aliases": list(card.aliases),
        "input_schema": card.input_schema,
        "output_schema": card.output_schema,
    }
