"""Whatever file is handed in: it is stored whole, or refused with the numbers of its bad lines; and nothing else."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plant import MakePlant

from db import queries
from db.database import Database
from db.errors import InputError
from jobs.cards import find_card
from jobs.reader import LineLimits
from jobs.settings import Settings
from jobs.submit import InputRefusedError, OnInvalid, SubmitOptions, submit
from jobs.validation import validate

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MODEL = "smollm2-135m-instruct"
_MAX_LINE_BYTES = 4096
_MAX_PEAK_MB = 200

# As text, since json.dumps would make none of them.
_GOOD = ['{"prompt": "a"}', '{"messages": [{"role": "user", "content": "b"}], "max_tokens": 5}']
_ODD = [
    "",
    "   ",
    "null",
    "[]",
    "5",
    '"text"',
    "{}",
    "{",
    '{"prompt": }',
    '{"prompt": "\\ud800"}',
    '{"prompt": "a", "custom_id": "\\udfff"}',
    '{"prompt": "\\u0000"}',
    '{"prompt": "a", "custom_id": "\\u0000"}',
    '{"prompt": "a\\u0000b", "seed": 1e999}',
    '{"prompt": "a", "max_tokens": 1e400}',
    '{"prompt": "a", "max_tokens": -0}',
    '{"prompt": "a", "max_tokens": 5.0}',
    '{"prompt": "a", "max_tokens": ' + "9" * 400 + "}",
    '{"prompt": "a", "max_tokens": 123456789012345678901234567890}',
    '{"prompt": "a", "prompt": "b"}',
    '{"prompt": "a", "custom_id": "same"}',
    '{"prompt": "' + "x" * 5000 + '"}',
    '{"prompt": "a", "unknown": ' + "[" * 900 + "]" * 900 + "}",
    '{"prompt": "a", "unknown": ' + "[" * 1500 + "]" * 1500 + "}",
    '{"prompt": ' + '{"a": ' * 300 + "1" + "}" * 300 + "}",
    "NaN",
    '{"prompt": "a", "temperature": NaN}',
]
_LINES = st.one_of(
    st.sampled_from(_GOOD).map(str.encode),
    st.sampled_from(_ODD).map(str.encode),
    st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")),
    st.text(max_size=40).map(lambda text: json.dumps({"prompt": text}).encode()),
)
_CONTENTS = st.builds(
    lambda bom, lines, end, last: bom + end.join(lines) + (end if last else b""),
    st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"]),
    st.lists(_LINES, max_size=12),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
)
_FUZZ = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _num_jobs(database: Database) -> int:
    return len(queries.list_jobs(database, 1_000))


def _check(database: Database, path: Path, content: bytes) -> None:
    """Both ways of submitting a file agree with its check, and the numbers are those of its lines."""
    ours = Settings(home=path.parent, model=_MODEL, max_line_bytes=_MAX_LINE_BYTES)
    card = find_card(path.parent, _MODEL)
    before = _num_jobs(database)
    try:
        report = validate(card, str(path), LineLimits.of(ours))
    except InputError:  # damaged as a whole
        report = None
    try:
        job = submit(database, ours, card, str(path), SubmitOptions()).job
        assert report is not None
        assert report.is_valid
        assert job.counts.total == report.num_lines
    except InputRefusedError as refused:
        refusal = refused.report
        assert report is not None
        assert refusal.num_invalid == report.num_invalid > 0
        last = len(content.split(b"\n"))
        assert all(1 <= line.line <= last for line in refusal.errors)
        assert _num_jobs(database) == before
    except InputError:
        assert report is None or report.num_lines == 0
        assert _num_jobs(database) == before
    if report is not None and report.num_lines:
        skipped = submit(database, ours, card, str(path), SubmitOptions(on_invalid=OnInvalid.SKIP)).job
        assert skipped.counts.total == report.num_lines
        assert (skipped.counts.failed, skipped.counts.pending) == (report.num_invalid, report.num_valid)


@_FUZZ
@given(_CONTENTS)
def test_lines_of_every_kind(sqlite_database: Database, home: Path, content: bytes) -> None:
    path = home / "in.jsonl"
    path.write_bytes(content)
    _check(sqlite_database, path, content)


@_FUZZ
@given(st.binary(max_size=300), st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd"]))
def test_random_bytes_also_behind_the_marks_of_compressed_files(
    sqlite_database: Database, home: Path, content: bytes, mark: bytes
) -> None:
    path = home / "in.jsonl"
    path.write_bytes(mark + content)
    _check(sqlite_database, path, mark + content)


@_FUZZ
@given(
    st.sampled_from([gzip.compress, zstd.compress]),
    st.integers(0, 400),
    st.lists(_LINES, min_size=3, max_size=30),
)
def test_compressed_files_that_are_cut_off(
    sqlite_database: Database, home: Path, compress: Callable[[bytes], bytes], cut: int, lines: list[bytes]
) -> None:
    content = b"\n".join(lines)
    path = home / "in.jsonl"
    compressed = compress(content)
    path.write_bytes(compressed[: max(0, len(compressed) - cut)])
    _check(sqlite_database, path, content)


@pytest.mark.parametrize("depth", [101, 10_000, 200_000])
def test_a_line_that_is_nested_too_deeply_is_a_bad_line(small: MakePlant, tmp_path: Path, depth: int) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text(_GOOD[0] + '\n{"prompt": "a", "b": ' + "[" * depth + "]" * depth + "}\n")
    done = small().cli.run("submit", str(path))
    assert done.returncode == 3, (done.returncode, done.stderr)
    assert "line 2: it is nested more deeply than max_line_depth (100)" in done.stderr
    assert "Traceback" not in done.stderr


_PEAK = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "cli", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
sys.exit(done.returncode)
"""


def test_a_line_of_a_hundred_megabytes_takes_no_memory(home: Path, tmp_path: Path) -> None:
    """Measured in processes of their own, where nothing else is loaded."""
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(_GOOD[0].encode() + b'\n{"prompt": "')
        for _ in range(100):
            file.write(b"x" * 1024 * 1024)
        file.write(b'"}\n')
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, "submit", str(path)],
        env={**os.environ, "PROMPTMILL_HOME": str(home), "PROMPTMILL_MODEL": _MODEL},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "line 2: the line is longer than max_line_bytes" in done.stderr
    peak_mb = int(done.stdout.split()[-1])
    assert peak_mb < _MAX_PEAK_MB
    print(f"peak {peak_mb} MB")


def test_what_is_good_among_them_runs(small: MakePlant) -> None:
    plant = small(echo_latency_s=0)
    path = plant.home / "mixed.jsonl"
    path.write_bytes(b"\n".join(line.encode() for line in (*_GOOD, *_ODD, *_GOOD)) + b"\n\xff\xfe\x00\n")
    job_id = plant.submit_file(path, on_invalid=OnInvalid.SKIP)
    plant.start_worker(is_ready=False)
    outcomes = plant.wait_sound(job_id)
    assert sum(one.status == "succeeded" for one in outcomes) >= 2 * len(_GOOD)
    assert {one.error_code for one in outcomes if one.error_code} <= {
        "invalid_json",
        "invalid_request",
        "invalid_parameter",
        "invalid_messages",
        "invalid_custom_id",
        "line_limit_exceeded",
        "duplicate_custom_id",
        # a max_tokens that the schema allows
        "max_total_tokens_exceeded",
    }


def test_an_empty_file_and_one_of_blank_lines_are_refused(small: MakePlant, tmp_path: Path) -> None:
    cli = small().cli
    for content in (b"", b"\n\r\n  \n", b"\xef\xbb\xbf"):
        path = tmp_path / "empty.jsonl"
        path.write_bytes(content)
        done = cli.run("submit", str(path))
        assert done.returncode == 3, done.stderr
        assert "has no requests" in done.stderr
    assert json.loads(cli.run("list", "--json").stdout) == []
