"""What comes out is what the card's output schema says: an object, or for stream: true an event stream."""

import json
from pathlib import Path

from answers import assert_results_satisfy
from samples import read_results
from servers import MakeCli

from jobs.cards import find_card


def test_results_satisfy_the_output_schema(make_cli: MakeCli, tmp_path: Path) -> None:
    texts = ["x", "", "two words", "é 😀\n", 'data: {"response": 1}\n\n', "\\ \" ' [DONE]"]
    bodies = [
        {**form, "stream": stream, "max_tokens": 50}
        for text in texts
        for form in (
            {"prompt": f"say {text}"},
            {"prompt": f"say {text}", "raw": True},
            {"messages": [{"role": "user", "content": f"say {text}"}]},
        )
        for stream in (False, True)
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    done = make_cli().run("run", str(source), "-o", str(output))
    assert done.returncode == 0, done.stderr
    card = find_card(tmp_path / "no-home", "smollm2-135m-instruct")
    assert assert_results_satisfy(card, read_results(output)) == len(bodies) / 2
