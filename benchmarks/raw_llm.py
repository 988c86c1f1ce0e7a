"""vLLM called directly, in a process of its own: the only file here that imports it.

`python -m benchmarks.raw_llm ENGINE_ARGS` loads an `LLM` with the arguments in that JSON object, prints a line that
begins with `ready`, then answers each line of its input, {"path", "chunk_size", "is_rendered"}, with a line: seconds,
completion tokens. It generates the requests of the file at `path`:
all at once, or with `chunk_size` chunk after chunk; through `LLM.chat`, or with `is_rendered` through `LLM.generate`
of token ids that were made before its clock starts.
"""

import json
import sys
import time
from typing import Any


def main() -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(**json.loads(sys.argv[1]))
    cache = llm.llm_engine.vllm_config.cache_config
    print("ready", cache.enable_prefix_caching, cache.num_gpu_blocks, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        with open(order["path"]) as file:
            requests = [json.loads(request) for request in file]
        params = [SamplingParams(temperature=0, max_tokens=request["max_tokens"]) for request in requests]
        chats: list[Any] = [request["messages"] for request in requests]
        generate = llm.chat
        if order["is_rendered"]:
            rendered = llm.get_tokenizer().apply_chat_template(
                chats, add_generation_prompt=True, return_dict=True
            )
            chats = [{"prompt_token_ids": ids} for ids in rendered["input_ids"]]
            generate = llm.generate
        size = order["chunk_size"] or len(chats)
        num_tokens = 0
        # what an earlier order left in it would be a gift
        llm.reset_prefix_cache()
        began_at = time.perf_counter()
        for start in range(0, len(chats), size):
            outputs = generate(chats[start : start + size], params[start : start + size], use_tqdm=False)
            num_tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
        print(time.perf_counter() - began_at, num_tokens, flush=True)


if __name__ == "__main__":
    main()
