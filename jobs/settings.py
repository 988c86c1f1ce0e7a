"""The settings: environment variables PROMPTMILL_*, then `promptmill.toml` in the home folder, then defaults."""

import difflib
import json
import os
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from db.errors import SettingsError

PREFIX = "PROMPTMILL_"
# The longest path a Unix socket may have is 107 bytes (sun_path).
_MAX_SOCKET_PATH_BYTES = 107
_SOCKET_NAME = "redis.sock"


def default_home() -> Path:
    """`./.promptmill` where there is one, as a checkout after `make run` has; else `~/.promptmill`."""
    local = Path.cwd() / ".promptmill"
    return local if local.is_dir() else Path.home() / ".promptmill"


def _expanded(home: Path) -> Path:
    try:
        return home.expanduser()
    except RuntimeError:
        raise SettingsError(f"setting home ({PREFIX}HOME): there is no such user's home folder") from None


def _home_of_environment() -> Path:
    """The home whose promptmill.toml is read."""
    home = os.environ.get(f"{PREFIX}HOME")
    return (_expanded(Path(home)) if home else default_home()).absolute()


class Settings(BaseSettings):
    """Every setting; a name ends in its unit where it has one."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        # an empty variable is what compose and shells make of one that is not set
        env_ignore_empty=True,
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
    engine_args: Annotated[dict[str, Any], NoDecode] = Field(
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

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return _expanded(home).absolute()

    @field_validator("engine_args", mode="before")
    @classmethod
    def _decoded(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError('give a JSON object, like {"max_num_seqs": 128}') from None

    @field_validator("broker_url")
    @classmethod
    def _is_redis(cls, url: str) -> str:
        if url and not url.startswith(("redis://", "rediss://", "redis+socket://")):
            raise ValueError("tickets travel over Redis: give a redis://, rediss:// or redis+socket:// URL")
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

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  pydantic-settings hands it over
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = _home_of_environment() / "promptmill.toml"
        return (
            init_settings,
            env_settings,
            TomlConfigSettingsSource(settings_cls, toml_file=path),
        )

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


def load_settings(**overrides: Any) -> Settings:
    """The settings in force; SettingsError names every one that is unknown, malformed or contradictory."""
    unknown = [
        name
        for name in os.environ
        if name.startswith(PREFIX) and name.removeprefix(PREFIX).lower() not in Settings.model_fields
    ]
    if unknown:
        raise SettingsError("\n".join(_unknown(name, PREFIX) for name in unknown))
    try:
        settings = Settings(**overrides)
        if "home" not in overrides and settings.home != _home_of_environment():
            # a worker started for that other home would read that one's promptmill.toml, and not this
            raise SettingsError(f"promptmill.toml: home is where the file lies; set {PREFIX}HOME instead")
        return settings
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(dict(problem)) for problem in error.errors())) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"promptmill.toml is not TOML: {error}") from None
    except UnicodeDecodeError:
        raise SettingsError("promptmill.toml is not UTF-8 text") from None
    except OSError as error:
        raise SettingsError(f"cannot read promptmill.toml: {error.strerror}") from None


def _explain(problem: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return _unknown(f"promptmill.toml: {name}", "promptmill.toml: ")
    message = problem["msg"].removeprefix("Value error, ")
    # the value is not shown: a URL may hold a password
    return f"setting {name} ({PREFIX}{name.upper()}): {message}" if name else f"settings: {message}"


def _unknown(name: str, prefix: str) -> str:
    # compared without the prefix, which would make any two names alike
    near = difflib.get_close_matches(name.removeprefix(prefix).lower(), Settings.model_fields, n=1)
    if not near:
        return f"{name} is not a setting"
    return (
        f"{name} is not a setting; did you mean {PREFIX + near[0].upper() if prefix == PREFIX else near[0]}?"
    )
