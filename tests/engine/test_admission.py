"""On the real model: the check at submit sees the tokens that the engine gets, and what it lets through succeeds."""

import json
from pathlib import Path
from random import Random

from answers import assert_results_satisfy
from samples import read_results
from servers import MakeCli
from transformers import AutoTokenizer

from jobs.cards import find_card
from jobs.generation import Generation
from jobs.rendering import Renderer
from jobs.tokenizers import load_tokenizer

_PARTS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    " ",
    "\n",
    "user\n",
    "the sea",
    "é",
    "😀",
    "12345",
    "\t",
    "<|im",
)


def _texts(num_texts: int) -> list[str]:
    draw = Random(5)  # noqa: S311  for tests
    return ["".join(draw.choices([*_PARTS, *"abc "], k=draw.randrange(30))) for _ in range(num_texts)]


def _generations() -> list[Generation]:
    texts = _texts(600)
    prompts = [Generation(text, None, number % 2 == 0, False, 5) for number, text in enumerate(texts)]
    roles = ("system", "user", "assistant", "a role of nobody's")
    chats = [[{"role": role, "content": text} for role in roles[: 1 + len(text) % 4]] for text in texts]
    return prompts + [Generation(None, chat, False, False, 5) for chat in chats]


def test_a_snapshot_renders_as_the_model_s_own_tokenizer(weights: Path, tmp_path: Path) -> None:
    limits = find_card(tmp_path, weights.name).limits
    theirs = Renderer(AutoTokenizer.from_pretrained(weights)).render(_generations(), limits)
    for _ in ("made", "loaded"):
        snapshot = load_tokenizer(str(weights), tmp_path / "snapshots")
        assert Renderer(snapshot).render(_generations(), limits) == theirs


def test_what_is_let_through_has_the_tokens_that_were_counted(make_cli: MakeCli, tmp_path: Path) -> None:
    cli = make_cli()
    bodies = [
        {"prompt": f"Say {number}.", "max_tokens": 4, "temperature": 0, "stream": number % 2 == 0}
        for number in range(8)
    ]
    long = {"prompt": "the sea " * 500, "raw": True, "max_tokens": 1_100}
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(body) + "\n" for body in [*bodies, long]))
    refused = cli.run("run", str(source), "-o", str(output))
    assert refused.returncode == 3
    assert "line 9: 1,001 prompt tokens + max_tokens 1,100" in refused.stderr, refused.stderr
    source.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    done = cli.run("run", str(source), "-o", str(output))
    assert done.returncode == 0, done.stderr
    results = read_results(output)
    card = find_card(tmp_path / "no-home", "smollm2-135m-instruct")
    assert assert_results_satisfy(card, results) == 4
    tokenizer = load_tokenizer(str(cli.home / "weights" / card.name), cli.home / "tokenizers")
    renderer = Renderer(tokenizer)
    generations = [Generation(str(body["prompt"]), None, False, False, 4) for body in bodies]
    counted = [len(one.token_ids) for one in renderer.render(generations, card.limits)]  # type: ignore[union-attr]
    assert counted == [line["usage"]["prompt_tokens"] for line in results]
