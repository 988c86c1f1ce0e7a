"""vLLM behind the engine protocol; the only file that imports it.

On a CPU the engine runs in this process: on two cores that is half again as fast as vLLM's default of a process
of its own. Its threads are as many as cores, by torch's own OpenMP (there, Intel's in its place was no faster).
On a GPU vLLM's defaults stand. Whatever the user sets in vLLM's own variables stays.
"""

import contextlib
import gc
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

from db.errors import EngineError, SettingsError
from jobs.cards import Card, Limits
from jobs.engine_args import check_engine_args
from jobs.generation import Generation
from jobs.redaction import show_arguments
from jobs.rendering import Rendered, Renderer
from jobs.schema import Problem
from jobs.settings import Settings
from jobs.structured import UNSUPPORTED
from jobs.tokenizers import TOKENIZERS_FOLDER, load_tokenizer
from workers.engine import Choice, Completion, EngineRequest, Failure, RequestRefusedError
from workers.provenance import identify_weights
from workers.vllm_outputs import failure_of, logprobs_of

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
            raise EngineError(f"vLLM cannot load {weights}: no model is there (config.json); put one there")
        _set_environment(is_local=is_local)
        try:
            import vllm
            from vllm.engine.arg_utils import EngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.llm_engine import LLMEngine
        except ImportError as error:
            raise EngineError(
                f"vLLM is not installed ({error}); run: pip install 'promptmill[gpu]'"
            ) from error
        # all that was imported stays: vLLM collects garbage three times on its way, and need not look through it
        gc.freeze()
        is_cpu = current_platform.is_cpu()
        if is_cpu:
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        known = {field.name: field.type for field in fields(EngineArgs)}
        check_engine_args(card.engine_args, known, f"card {card.name}")
        check_engine_args(settings.engine_args, known, "--engine-arg or setting engine_args")
        arguments = _engine_args(settings, card, weights, is_cpu=is_cpu)
        try:
            # beside the engine's own load, which hardly needs the interpreter
            with ThreadPoolExecutor(1, "tokenizer") as thread:
                tokenizer = thread.submit(load_tokenizer, weights, settings.home / TOKENIZERS_FOLDER)
                self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
                self._renderer = Renderer(tokenizer.result())
        except Exception as error:
            if (refusal := _refusal(error)) is not None:
                raise SettingsError(f"vLLM refuses its engine arguments: {refusal}") from error
            raise EngineError(f"vLLM cannot load {weights}: {type(error).__name__}: {error}") from error
        config = self._engine.vllm_config
        self._label = f"vllm {vllm.__version__}"
        # what the model's own generation_config.json asks for, as LLM.chat does
        self._default_sampling: dict[str, Any] = config.model_config.get_diff_sampling_param()
        self._details = {
            "name": "vllm",
            "version": vllm.__version__,
            "arguments": show_arguments(arguments),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "weights": identify_weights(
                weights, getattr(config.model_config.hf_config, "_commit_hash", None)
            ),
            "sampling": self._default_sampling,
        }
        self._scheduling = config.scheduler_config
        cache = config.cache_config
        _log.info(
            "vLLM's KV cache: %s blocks of %s tokens; prefix caching %s",
            f"{cache.num_gpu_blocks:,}",
            cache.block_size,
            "on" if cache.enable_prefix_caching else "off",
        )
        self._pieces: dict[str, list[str]] = {}
        self._num_tokens: dict[str, int] = {}
        self._requests: dict[str, EngineRequest] = {}

    @property
    def label(self) -> str:
        return self._label

    @property
    def details(self) -> dict[str, Any]:
        return self._details

    @property
    def num_seqs(self) -> int:
        return int(self._scheduling.max_num_seqs)

    @property
    def max_num_batched_tokens(self) -> int:
        return int(self._scheduling.max_num_batched_tokens)

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
            raise RequestRefusedError(str(error)) from error
        except (RequestRefusedError, VLLMServerError):
            raise
        except Exception as error:
            raise RequestRefusedError(type(error).__name__) from error

    def _add(self, request: EngineRequest) -> None:
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        kind = RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY
        schema = None if request.schema is None else StructuredOutputsParams(json=request.schema)
        params = SamplingParams.from_optional(
            **{
                **self._default_sampling,
                **request.sampling,
                "max_tokens": request.max_tokens,
            },
            output_kind=kind,
            structured_outputs=schema,
            # in some models the tags of a call are special tokens
            skip_special_tokens=request.tools is None,
        )
        if schema is not None:
            self._verify_schema(params)
        self._engine.add_request(str(request.key), tokens_input(request.prompt.token_ids), params)
        self._requests[str(request.key)] = request
        if request.stream:
            self._pieces[str(request.key)] = []
            self._num_tokens[str(request.key)] = 0

    def _verify_schema(self, params: Any) -> None:
        """What vLLM does itself when the request comes in; first here, to tell a bad schema from all else."""
        from vllm.exceptions import VLLMClientError

        config = self._engine.vllm_config
        tokenizer = self._engine.input_processor.tokenizer
        try:
            params.verify(config.model_config, None, config.structured_outputs_config, tokenizer)
        except Exception as error:
            # vLLM's own words are about the schema; what else is raised in there may be about anything
            reason = str(error) if isinstance(error, VLLMClientError) else type(error).__name__
            raise RequestRefusedError(reason, UNSUPPORTED) from error

    def abort(self, keys: Sequence[int]) -> None:
        ids = [str(key) for key in keys]
        self._engine.abort_request(ids)
        for id_ in ids:
            self._forget(id_)

    def _forget(self, id_: str) -> None:
        self._pieces.pop(id_, None)
        self._num_tokens.pop(id_, None)
        self._requests.pop(id_, None)

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
        request = self._requests[id_]
        self._forget(id_)
        text = completion.text if pieces is None else "".join(pieces)
        for one in output.outputs:
            is_first = one is completion
            if (failure := failure_of(request, one, text if is_first else one.text)) is not None:
                return failure
        others = output.outputs[1:]
        num_top = request.sampling.get("logprobs", 0)
        return Completion(
            key=int(id_),
            text=text,
            pieces=None if pieces is None else tuple(pieces),
            finish_reason=completion.finish_reason,
            num_prompt_tokens=len(output.prompt_token_ids or ()),
            num_completion_tokens=num_tokens + sum(len(one.token_ids) for one in others),
            logprobs=logprobs_of(completion, num_top),
            others=tuple(Choice(one.text, one.finish_reason, logprobs_of(one, num_top)) for one in others),
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
        # One backend for all, the one that the submit asks: left to itself vLLM picks one for each schema, and then
        # compiles all of them with the first. Without blanks a model cannot dwell on them until it is cut off.
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
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
