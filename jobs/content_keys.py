"""What a request asks of a model, as a key: of two requests with one key, one need not be generated."""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from jobs.generation import Generation

_KEY_BYTES = 16
# Arguments of an engine that say how much it does at once and how fast, and which file: what counts of that is told by
# the weights themselves. Every other argument may change an answer.
_NEUTRAL_ARGUMENTS = frozenset(
    {
        "model",
        "disable_log_stats",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "max_num_batched_tokens",
        "max_num_seqs",
        # the echo engine's
        "latency_s",
        "num_seqs",
    }
)


class ContentKeys:
    """The keys of requests for one card on one engine, which tells its `details`. Another card, other weights, another
    version or another argument that may change an answer give other keys."""

    def __init__(self, card_sha256: str, details: Mapping[str, Any]) -> None:
        begin = orjson.dumps([card_sha256, _identity(details)], option=orjson.OPT_SORT_KEYS)
        self._begin = hashlib.blake2b(begin, digest_size=_KEY_BYTES)

    def of(self, generation: Generation) -> str:
        """32 hexadecimal digits. Objects inside messages and tools count in their own order, as a chat template may
        write them down."""
        key = self._begin.copy()
        key.update(
            orjson.dumps(
                [
                    generation.prompt,
                    generation.messages,
                    generation.raw,
                    generation.stream,
                    generation.max_tokens,
                    sorted(generation.sampling.items()),
                    generation.schema,
                    generation.tools,
                ]
            )
        )
        return key.hexdigest()


def _identity(details: Mapping[str, Any]) -> dict[str, Any]:
    arguments = details.get("arguments", {})
    identity = {
        **details,
        "arguments": {name: value for name, value in arguments.items() if name not in _NEUTRAL_ARGUMENTS},
    }
    weights = details.get("weights", {})
    if "fingerprint" in weights:  # wherever they are
        identity["weights"] = weights["fingerprint"]
    return identity
