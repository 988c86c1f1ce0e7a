"""Tokenizers and weights folders for tests, made on the spot: a few kinds that encode in different ways."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALTERNATING = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns') }}{% endif %}{{ message['content'] }}{% endfor %}"
)
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
_SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


def byte_level(**special: bool) -> Tokenizer:
    """Like GPT-2's; `special` are flags of its special tokens."""
    vocab = {letter: number for number, letter in enumerate([*_BYTES, "he", "Ġhe", "ll"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("h", "e"), ("Ġ", "he"), ("l", "l")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_special(tokenizer, **special)


def sentence_piece(*, scheme: str | None = None, byte_fallback: bool = False) -> Tokenizer:
    """Like Llama's and Mistral's: spaces are marks, and each text begins with one; by a normalizer, or by `scheme`.
    What is no letter is unknown, or its bytes are."""
    letters = {
        letter: number for number, letter in enumerate(["<unk>", "▁", *map(chr, range(33, 127)), "\n"])
    }
    unknown = "<unk>"
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    vocab = {**letters, **{token: number for number, token in enumerate(["▁h", "he", *bytes_], len(letters))}}
    merges = [("▁", "h"), ("h", "e")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)
    )
    if scheme is None:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return _with_special(tokenizer)


def _with_special(tokenizer: Tokenizer, **flags: bool) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, **flags) for text in _SPECIAL])
    first = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", first)]
    )
    return tokenizer


def snapshot(tokenizer: Tokenizer, template: Any = CHATML) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer.to_str(),
        "chat_template": template,
        "special_tokens": {"bos_token": "<s>", "eos_token": "</s>"},
        "split_special_tokens": False,
    }


def write_weights(folder: Path, tokenizer: Tokenizer, template: str = CHATML) -> Path:
    """A folder of weights, as far as a tokenizer needs one."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    (folder / "config.json").write_text("{}")
    return folder
