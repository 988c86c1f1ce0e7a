"""A whole job against `LLM.generate` of the same token ids, on the architecture of Hermes 2 Pro Mistral 7B.

On a machine with an NVIDIA GPU the model is that of the published configuration with weights that vLLM makes up
(load_format dummy): what it says is noise, how long it takes is not. Its tokenizer is the small model's, cut to the
vocabulary. Elsewhere the same runs on the small model itself. The raw side gets its token ids before its clock starts,
so a whole job pays for rendering and the database, and has to earn that back by its order (see benchmarks/generation).
"""

import json
import random
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.row import Row
from benchmarks.sides import ENGINE_ARGS, Side, raw_llm, weights, worker

_HERMES = "hermes-2-pro-mistral-7b"
# as the model's page has it, but for the tokens that end a text: those are our tokenizer's
_CONFIG: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32032,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HERMES_ARGS = {
    "load_format": "dummy",
    "max_model_len": 4096,
    "max_num_batched_tokens": 8192,
    "max_num_seqs": 256,
}


def measure(*, quick: bool) -> list[Row]:
    has_gpu = _has_gpu()
    # without a GPU it says nothing that benchmarks/generation does not, and only has to run
    num_requests, num_pairs = (2048, 3) if has_gpu else (64, 1)
    if quick:
        num_requests, num_pairs = num_requests // 4, 1
    values: list[float] = []
    raws: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if has_gpu:
            side = Side(_HERMES, str(write_hermes(folder / "hermes")), _HERMES_ARGS, is_gpu=True)
        else:
            side = Side(engine_args=ENGINE_ARGS)
        # one after the other: a GPU holds one engine
        paths = [
            write_requests(folder / f"{number}.jsonl", num_requests, number)
            for number in range(num_pairs + 1)
        ]
        with raw_llm(side) as raw:
            raw.tokens_per_s(paths[0], is_rendered=True)
            raws = [raw.tokens_per_s(path, is_rendered=True) for path in paths[1:]]
        with worker(folder, side) as ours:
            ours.tokens_per_s(paths[0])
            values = [ours.tokens_per_s(path) for path in paths[1:]]
    model = "Hermes 7B, dummy weights" if has_gpu else "small model, no GPU here"
    subject = f"{model}, {num_requests}, vs LLM.generate"
    return [Row(subject, "completion tokens/s", values, raws, reach=1.0 if has_gpu else None)]


def _has_gpu() -> bool:
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    done = subprocess.run([command, "-L"], capture_output=True, text=True, check=False)
    return done.stdout.startswith("GPU")


def write_hermes(folder: Path) -> Path:
    """A folder that vLLM takes for the model, without its weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    source = Path(weights())
    for path in source.glob("*token*"):
        shutil.copy(path, folder)
    if (template := source / "chat_template.jinja").is_file():
        shutil.copy(template, folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    model = tokenizer["model"]
    model["vocab"] = {
        text: number for text, number in model["vocab"].items() if number < _CONFIG["vocab_size"]
    }
    model["merges"] = [pair for pair in model["merges"] if _merged(pair) in model["vocab"]]
    path.write_text(json.dumps(tokenizer))
    return folder


def _merged(pair: str | list[str]) -> str:
    """Older files have a merge as text with a space between."""
    return "".join(pair.split(" ") if isinstance(pair, str) else pair)


def write_requests(path: Path, num_requests: int, seed: int) -> Path:
    chance = random.Random(seed)  # noqa: S311  no secret
    with path.open("w") as file:
        for number in range(num_requests):
            facts = " ".join(f"Fact {fact} of {number} is {chance.random():.3f}." for fact in range(8))
            line = {
                "messages": [{"role": "user", "content": f"{facts} Tell me {seed} things about them."}],
                "max_tokens": min(160, 8 + int(chance.expovariate(1 / 40))),
            }
            file.write(json.dumps(line) + "\n")
    return path
