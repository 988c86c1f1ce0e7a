"""vLLM behind the engine protocol; the only file that imports it.

On a CPU the engine runs in this process: on two cores that is half again as fast as vLLM's default of a process
of its own. Its threads are as many as cores, by torch's own OpenMP (there, Intel's in its place was no faster).
On a GPU vLLM's defaults stand. Whatever the user sets in vLLM's own variables stays.
"""

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from db.errors import EngineError, SettingsError
from jobs.cards import Card, Limits
from jobs.engine_args import check_engine_args
from jobs.generation import Generation
from jobs.rendering import Rendered, Renderer
from jobs.schema import Problem
from jobs.settings import Settings
from workers.engine import Completion, EngineRequest, Failure

_log = logging.getLogger(__name__)

_CPU_NUM_SEQS = 64
_GIB = 1024**3
_MAX_KV_CACHE_GIB = 16
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class VllmEngine:
    """One vLLM engine. EngineError when it cannot be started."""

    def __init__(self, settings: Settings, card: Card) -> None:
        weights = card.weights(settings.home)
        is_local = Path(weights).is_dir()
        if is_local and not (Path(weights) / "config.json").is_file():
            # what vLLM says of that looks like a fault of its arguments
            raise EngineError(f"vLLM cannot load {weights}: no model is there (config.json)")
        _set_environment(is_local=is_local)
        try:
            import vllm
            from vllm.engine.arg_utils import EngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.llm_engine import LLMEngine
        except ImportError as error:
            raise EngineError(
                f"vLLM is not installed ({error}); run make run, or install promptmill[gpu]"
            ) from error
        is_cpu = current_platform.is_cpu()
        if is_cpu:
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        known = {field.name: field.type for field in fields(EngineArgs)}
        check_engine_args(card.engine_args, known, f"card {card.name}")
        check_engine_args(settings.engine_args, known, "--engine-arg or setting engine_args")
        arguments = _engine_args(settings, card, weights, is_cpu=is_cpu)
        try:
            self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        except Exception as error:
            if (refusal := _refusal(error)) is not None:
                raise SettingsError(f"vLLM refuses its engine arguments: {refusal}") from error
            raise EngineError(f"vLLM cannot load {weights}: {type(error).__name__}: {error}") from error
        config = self._engine.vllm_config
        self._label = f"vllm {vllm.__version__}"
        self._num_seqs = int(config.scheduler_config.max_num_seqs)
        # what the model's own generation_config.json asks for, as LLM.chat does
        self._default_sampling: dict[str, Any] = config.model_config.get_diff_sampling_param()
        cache = config.cache_config
        _log.info(
            "vLLM's KV cache: %s blocks of %s tokens; prefix caching %s",
            f"{cache.num_gpu_blocks:,}",
            cache.block_size,
            "on" if cache.enable_prefix_caching else "off",
        )
        self._renderer = Renderer(weights)
        self._pieces: dict[str, list[str]] = {}
        self._num_tokens: dict[str, int] = {}

    @property
    def label(self) -> str:
        return self._label

    @property
    def num_seqs(self) -> int:
        return self._num_seqs

    @property
    def num_unfinished(self) -> int:
        return int(self._engine.get_num_unfinished_requests())

    @property
    def is_dead(self) -> bool:
        # only an engine in a process of its own has resources that can be dead while we live
        resources = getattr(self._engine.engine_core, "resources", None)
        return bool(getattr(resources, "engine_dead", False))

    def render(self, generations: Sequence[Generation], limits: Limits) -> list[Rendered | Problem]:
        return self._renderer.render(generations, limits)

    def add(self, request: EngineRequest) -> None:
        from vllm.exceptions import VLLMClientError, VLLMServerError

        try:
            self._add(request)
        except VLLMClientError as error:
            # names a parameter and its value, never the prompt
            raise ValueError(str(error)) from error
        except VLLMServerError:
            raise
        except Exception as error:
            raise ValueError(type(error).__name__) from error

    def _add(self, request: EngineRequest) -> None:
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        kind = RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY
        params = SamplingParams.from_optional(
            **{
                **self._default_sampling,
                **request.sampling,
                "max_tokens": request.max_tokens,
            },
            output_kind=kind,
        )
        self._engine.add_request(str(request.key), tokens_input(request.prompt.token_ids), params)
        if request.stream:
            self._pieces[str(request.key)] = []
            self._num_tokens[str(request.key)] = 0

    def abort(self, keys: Sequence[int]) -> None:
        ids = [str(key) for key in keys]
        self._engine.abort_request(ids)
        for id_ in ids:
            self._pieces.pop(id_, None)
            self._num_tokens.pop(id_, None)

    def step(self) -> list[Completion | Failure]:
        finished = []
        for output in self._engine.step():
            outcome = self._outcome(output)
            if outcome is not None:
                finished.append(outcome)
        return finished

    def _outcome(self, output: Any) -> Completion | Failure | None:
        id_, completion = output.request_id, output.outputs[0]
        pieces = self._pieces.get(id_)
        num_tokens = len(completion.token_ids)
        if pieces is not None:
            if completion.text:
                pieces.append(completion.text)
            num_tokens += self._num_tokens[id_]
            self._num_tokens[id_] = num_tokens
        if not output.finished:
            return None
        self._pieces.pop(id_, None)
        self._num_tokens.pop(id_, None)
        if completion.finish_reason not in ("stop", "length"):
            return Failure(int(id_), f"the engine gave it up ({completion.finish_reason})", is_transient=True)
        return Completion(
            key=int(id_),
            text=completion.text if pieces is None else "".join(pieces),
            pieces=None if pieces is None else tuple(pieces),
            finish_reason=completion.finish_reason,
            num_prompt_tokens=len(output.prompt_token_ids or ()),
            num_completion_tokens=num_tokens,
        )

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._engine.engine_core.shutdown()


def _set_environment(*, is_local: bool) -> None:
    """What vLLM reads from the environment; whatever the user has set stays."""
    defaults = {
        "VLLM_LOGGING_LEVEL": "WARNING",
        # no report of use is sent anywhere
        "VLLM_NO_USAGE_STATS": "1",
        # a fork would copy our sockets and the supervisor's pipe into vLLM's processes
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if is_local:
        defaults["HF_HUB_OFFLINE"] = "1"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _engine_args(settings: Settings, card: Card, weights: str, *, is_cpu: bool) -> dict[str, Any]:
    """Our choice for the machine, with the card's limits as vLLM names them; over it what the card says itself, and
    over that what the user does."""
    arguments: dict[str, Any] = {
        "model": weights,
        "max_model_len": card.limits.max_total_tokens,
        "max_num_batched_tokens": card.limits.max_batch_prefill_tokens,
        "disable_log_stats": True,
    }
    num_seqs = settings.engine_num_seqs or (_CPU_NUM_SEQS if is_cpu else None)
    if num_seqs is not None:
        arguments["max_num_seqs"] = num_seqs
    if is_cpu:
        # compiling wants a C++ compiler, which a fresh machine does not have
        arguments["enforce_eager"] = True
        arguments["kv_cache_memory_bytes"] = (settings.cpu_kv_cache_gib or _kv_cache_gib()) * _GIB
    return {**arguments, **card.engine_args, **settings.engine_args}


def _kv_cache_gib() -> int:
    """A quarter of the memory that this process may have, within reason: the rest is for the weights, for what a step
    needs, and for everybody else."""
    size_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # a container's limit, where there is one
        size_bytes = min(size_bytes, int(_CGROUP_LIMIT.read_text()))
    return min(max(1, size_bytes // 4 // _GIB), _MAX_KV_CACHE_GIB)


def _refusal(error: Exception) -> str | None:
    """What vLLM's own check of its arguments says, without their values; None for any other error."""
    problems = getattr(error, "errors", None)
    if not isinstance(error, ValueError) or not callable(problems):
        return None
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in problems())
