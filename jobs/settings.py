"""The settings: environment variables PROMPTMILL_*, then `promptmill.toml` in the working folder, then the one in the
home folder, then defaults."""

import difflib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from db.errors import SettingsError
from jobs.layers import PREFIX as PREFIX
from jobs.layers import TOML_NAME, Layer, environment_layer, expand, merge, read_toml

# The longest path a Unix socket may have is 107 bytes (sun_path).
_MAX_SOCKET_PATH_BYTES = 107
_SOCKET_NAME = "redis.sock"


def _working_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise SettingsError("the working folder is there no more; go to another one: cd") from None


def default_home() -> Path:
    """`./.promptmill` where there is one, as a checkout after `make run` has; else `~/.promptmill`."""
    local = _working_folder() / ".promptmill"
    return local if local.is_dir() else expand("~/.promptmill", "its default")


def _decoded(value: Any) -> Any:
    """A JSON object is what a variable may hold."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError('give a JSON object, like {"max_num_seqs": 128}') from None


class Settings(BaseModel):
    """Every setting; a name ends in its unit where it has one."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        # no time here may be without end
        allow_inf_nan=False,
    )

    home: Path = Field(
        default_factory=default_home,
        description="Folder of the database, cards, weights and logs.",
    )
    database_url: str = Field(
        "",
        description="sqlite:///FILE or postgresql://...; empty: SQLite in the home folder.",
    )
    broker_url: str = Field(
        "",
        description="redis://, rediss:// or redis+socket://; empty: a private Redis.",
    )
    model: str = Field(
        "hermes-2-pro-mistral-7b",
        description="The card that is meant when --model is not given.",
    )

    engine: Literal["vllm", "echo"] = Field(
        "vllm", description="echo repeats the prompt: for load and fault tests."
    )
    echo_latency_s: float = Field(0.0, ge=0, description="How long the echo engine takes over a request.")
    engine_num_seqs: int | None = Field(
        None,
        ge=1,
        description="Requests that run at once (max_num_seqs); empty: 64 on a CPU, vLLM's own on a GPU.",
    )
    cpu_kv_cache_gib: int | None = Field(
        None,
        ge=1,
        description="Room for the KV cache of an engine on the CPU; empty: a quarter of the memory, up to 16.",
    )
    engine_args: Annotated[dict[str, Any], BeforeValidator(_decoded)] = Field(
        default_factory=dict,
        description="vLLM's engine arguments, as a JSON object; they have the last word. See --engine-arg.",
    )

    chunk_num_requests: int = Field(64, ge=1, le=10_000, description="The most requests in a chunk.")
    chunk_max_tokens: int = Field(
        16_384,
        ge=1,
        description="The most tokens, estimated, in a chunk of more than one request.",
    )
    worker_num_chunks: int | None = Field(
        None,
        ge=1,
        le=256,
        description="The most chunks that one worker has in flight; empty: enough for 20 of the engine's batches.",
    )
    max_attempts: int = Field(
        2, ge=1, description="Times a chunk may lose its worker before it is split, and its parts run alone."
    )

    lease_s: float = Field(
        30.0,
        gt=0,
        description="How long a chunk stays with a worker that is not heard of.",
    )
    heartbeat_s: float = Field(2.0, gt=0, description="How often leases are renewed and cancels looked for.")
    sweep_s: float = Field(
        5.0,
        gt=0,
        description="How often expired leases and missing tickets are looked for.",
    )
    flush_s: float = Field(1.0, gt=0, description="How long a finished result may wait to be written.")
    stop_grace_s: float = Field(
        20.0,
        gt=0,
        description="How long a worker may take to stop before it is killed.",
    )

    max_line_bytes: int = Field(
        16 * 1024 * 1024,
        ge=1024,
        description="The longest line an input file may have.",
    )
    max_line_depth: int = Field(
        100,
        ge=3,  # what messages take
        le=1_000,
        description="How many arrays and objects of a line may stand inside each other.",
    )

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return _working_folder() / expand(home, f"{PREFIX}HOME")

    @field_validator("broker_url")
    @classmethod
    def _is_redis(cls, url: str) -> str:
        if not url:
            return url
        first = url.partition(";")[0]  # others may follow, to fall back on
        if not first.startswith(("redis://", "rediss://", "redis+socket://")):
            raise ValueError("tickets travel over Redis: give a redis://, rediss:// or redis+socket:// URL")
        try:
            parts = urlsplit(first)
            is_whole = parts.port != 0 and first.count("@") <= 1
        except ValueError:  # which would quote what stands there: perhaps half of a password
            is_whole = False
        if not is_whole:
            raise ValueError("its port is no number; in a password write %40 for @, %2F for / and %23 for #")
        if parts.scheme != "redis+socket" and not (parts.path.strip("/") or "0").isdigit():
            raise ValueError("behind the host comes the number of a database: redis://host:6379/0")
        return url

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.heartbeat_s * 3 > self.lease_s:
            raise ValueError(
                f"lease_s ({self.lease_s:g}) must be at least three times heartbeat_s ({self.heartbeat_s:g}):"
                " else one lost heartbeat loses the lease"
            )
        if self.flush_s * 2 > self.lease_s:
            raise ValueError(f"flush_s ({self.flush_s:g}) must be at most half of lease_s ({self.lease_s:g})")
        return self

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'promptmill.db'}"

    @property
    def has_private_broker(self) -> bool:
        return not self.broker_url

    @cached_property
    def private_broker_socket(self) -> Path:
        """Where the private Redis listens: in the home folder, or, where that path is too long, in one of /tmp."""
        path = self.home / _SOCKET_NAME
        if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
            return path
        import hashlib

        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
        return Path(f"/tmp/promptmill-{os.getuid()}-{digest}") / _SOCKET_NAME  # noqa: S108  made 0700, ownership checked

    @property
    def resolved_broker_url(self) -> str:
        if self.has_private_broker:
            return f"redis+socket://{self.private_broker_socket}"
        return self.broker_url


@dataclass(frozen=True)
class Loaded:
    """The settings in force, and for each that is not a default the layer that says it."""

    settings: Settings
    said_by: dict[str, Layer]


def load_settings(**overrides: Any) -> Settings:
    """The settings in force; SettingsError names every one that is unknown, malformed or contradictory."""
    return load(**overrides).settings


def load(**overrides: Any) -> Loaded:
    layers = _layers(overrides)
    _refuse_unknown(layers)
    values, said_by = merge(layers)
    try:
        return Loaded(Settings(**values), said_by)
    except ValidationError as error:
        problems = [_explain(dict(problem), said_by) for problem in error.errors()]
    raise SettingsError("\n".join(problems))


def _layers(overrides: dict[str, Any]) -> list[Layer]:
    """The first that says a setting counts. Those before the home's file decide which home that is."""
    layers = [Layer("caller", overrides, dict.fromkeys(overrides, "the caller")), environment_layer()]
    folder = _working_folder()
    if (here := read_toml(folder / TOML_NAME, is_found_by_chance=True)) is not None:
        layers.append(here)
    home = _home(layers)
    if home == folder or (in_home := read_toml(home / TOML_NAME)) is None:
        return layers
    if in_home.values.get("home", str(home)) != str(home):
        # a worker started for that other home would read that one's file, and not this
        place = in_home.places["home"]
        raise SettingsError(f"{place}: home is the folder of this file; set {PREFIX}HOME instead")
    return [*layers, in_home]


def _home(layers: Iterable[Layer]) -> Path:
    values, said_by = merge(layers)
    home = values.get("home")
    if not isinstance(home, str | Path):  # what else it may be is refused with the other settings
        return default_home()
    return _working_folder() / expand(home, said_by["home"].places["home"])


def _refuse_unknown(layers: Iterable[Layer]) -> None:
    unknown = [
        (name, layer) for layer in layers for name in layer.places if name not in Settings.model_fields
    ]
    if not unknown:
        return
    lines = [_unknown(name, layer) for name, layer in unknown]
    if not all("did you mean" in line for line in lines):
        lines.append(f"the settings are: {', '.join(Settings.model_fields)}")
    raise SettingsError("\n".join(lines))


def _unknown(name: str, layer: Layer) -> str:
    is_variable = layer.source == "environment"
    # compared without the prefix, which would make any two names alike
    near = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), Settings.model_fields, n=1)
    place = layer.places[name]
    what = f"{place if is_variable else f'{place}: {name}'} is not a setting"
    return f"{what}; did you mean {PREFIX + near[0].upper() if is_variable else near[0]}?" if near else what


def _explain(problem: dict[str, Any], said_by: dict[str, Layer]) -> str:
    # the value is not shown: a URL may hold a password
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:  # settings that contradict each other
        places = [
            f"{name} is from {layer.places[name]}" for name, layer in said_by.items() if name in message
        ]
        return "; ".join([f"settings: {message}", *places])
    name = str(problem["loc"][0])
    place = said_by[name].places[name] if name in said_by else "its default"
    return f"setting {name} ({place}): {message}"
