"""Input files for tests, and reading results back."""

import json
from pathlib import Path
from typing import Any


def write_requests(path: Path, num_requests: int) -> Path:
    """A file of echo requests; request 3 is longer than the small card allows."""
    with path.open("w") as file:
        for number in range(num_requests):
            prompt = "word " * 800 if number == 3 else f"say {number}"
            line: dict[str, Any] = {"custom_id": f"r{number}", "prompt": prompt}
            if number == 3:
                line["max_tokens"] = 1999
            file.write(json.dumps(line) + "\n")
    return path


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
