"""CSV and Parquet: readable by what people read them with, with columns that have types, in bounded memory."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from db import outcomes
from db.database import Database
from db.errors import OutputError, SettingsError
from db.leases import NewResult
from db.states import InputFormat, ResultStatus
from jobs.export import ExportOptions, Order, export
from jobs.forms import Form, choose_form, named_form
from jobs.forms import parquet as parquet_form
from jobs.forms.columns import Kind, find_request_kinds, result_columns

_RESULT_COLUMNS = [
    *("index", "custom_id", "status", "response", "tool_calls", "choices", "logprobs", "finish_reason"),
    *("prompt_tokens", "completion_tokens", "error_code", "error_message", "reused_from"),
]
_HARD = 'a "quoted", line\r\nand\ranother\n; ä 日本 😀'
_EVENTS = 'data: {"response":"Hi"}\n\ndata: [DONE]\n\n'


@pytest.fixture
def done(store: Any, finish: Any, sqlite_database: Database) -> str:
    """A hard text, messages and a stream, a bad line, calls of tools."""
    job_id: str = store(
        {"prompt": "x", "custom_id": "a", "max_tokens": 7, "label": "left", "status": 1, "temperature": 1},
        {"messages": [{"role": "user", "content": _HARD}], "stream": True, "temperature": 0.5},
        {"prompt": 5},
        {"prompt": "y", "label": ["r"], "status": 2},
    )
    calls = {"response": "", "tool_calls": [{"name": "time", "arguments": {}}]}
    finish(
        sqlite_database,
        job_id,
        NewResult(0, json.dumps({"response": _HARD}), "stop", 4, 9),
        NewResult(1, json.dumps(_EVENTS), "stop", 4, 1),
        NewResult(3, json.dumps(calls), "stop", 4, 1),
    )
    return job_id


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def test_csv_has_a_header_and_every_text_as_it_was(
    done: str, sqlite_database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "out.csv"
    assert export(sqlite_database, done, str(path), ExportOptions(Form.CSV)) == 4
    first, second, third, fourth = _csv(path)
    assert list(first) == _RESULT_COLUMNS
    assert (first["index"], first["custom_id"], first["response"]) == ("0", "a", _HARD)
    assert second["response"] == _EVENTS
    assert (third["status"], third["error_code"], third["prompt_tokens"]) == ("failed", "invalid_request", "")
    assert json.loads(fourth["tool_calls"]) == [{"name": "time", "arguments": {}}]
    frame = pd.read_csv(path)
    assert list(frame["status"]) == ["succeeded", "succeeded", "failed", "succeeded"]
    assert frame["response"][0] == _HARD


def test_csv_with_the_requests_has_a_column_for_each_of_their_fields(
    done: str, sqlite_database: Database, tmp_path: Path
) -> None:
    export(sqlite_database, done, str(tmp_path / "out.csv"), ExportOptions(Form.CSV, with_input=True))
    first, second, third, _ = _csv(tmp_path / "out.csv")
    assert list(first)[len(_RESULT_COLUMNS) :] == [
        *("prompt", "max_tokens", "label", "request_status", "temperature", "messages", "stream")
    ]
    assert (first["prompt"], first["max_tokens"], first["request_status"]) == ("x", "7", "1")
    assert json.loads(second["messages"]) == [{"role": "user", "content": _HARD}]
    assert (third["prompt"], third["label"]) == ("", "")


def test_parquet_has_types_and_opens_in_pyarrow_pandas_and_datasets(
    done: str, sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.parquet"
    options = ExportOptions(Form.PARQUET, with_input=True)
    assert export(sqlite_database, done, str(path), options) == 4
    table = pq.read_table(path)
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    types = {field.name: field.type for field in table.schema}
    assert list(types)[: len(_RESULT_COLUMNS)] == _RESULT_COLUMNS
    assert {types[name] for name in ("index", "prompt_tokens", "max_tokens", "request_status")} == {
        pa.int64()
    }
    assert (types["temperature"], types["stream"]) == (pa.float64(), pa.bool_())
    assert (types["messages"], types["label"]) == (pa.list_(message), pa.string())
    frame = pd.read_parquet(path)
    assert frame["response"][0] == _HARD
    assert frame["messages"][1][0] == {"role": "user", "content": _HARD}
    assert frame["temperature"].tolist()[:2] == [1.0, 0.5]
    assert table.column("label").to_pylist() == ["left", None, None, '["r"]']
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    from datasets import Dataset

    dataset = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert dataset.column_names == list(types)
    assert dataset[1]["messages"] == [{"role": "user", "content": _HARD}]
    assert dataset[2]["response"] is None


def test_row_groups_are_written_as_they_fill_and_to_stdout_too(
    store: Any,
    finish: Any,
    sqlite_database: Database,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    monkeypatch.setattr(parquet_form, "_BATCH", (2, 1_000_000))
    monkeypatch.setattr(parquet_form, "_GROUP", (4, 1_000_000))
    job_id = store(*[{"prompt": "x"}] * 10)
    finish(sqlite_database, job_id)
    assert export(sqlite_database, job_id, "-", ExportOptions(Form.PARQUET)) == 10
    file = pq.ParquetFile(io.BytesIO(capsysbinary.readouterr().out))
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [4, 4, 2]
    assert file.read().column("response").to_pylist() == [f"answer {n}" for n in range(10)]


def test_a_job_without_such_results_is_a_table_without_rows(
    store: Any, sqlite_database: Database, tmp_path: Path
) -> None:
    job_id = store({"prompt": "x"})
    for form in (Form.CSV, Form.PARQUET):
        assert export(sqlite_database, job_id, str(tmp_path / form), ExportOptions(form)) == 0
    assert pq.read_table(tmp_path / "parquet").column_names == _RESULT_COLUMNS
    assert pd.read_csv(tmp_path / "csv").columns.tolist() == _RESULT_COLUMNS


@pytest.mark.parametrize("form", [Form.CSV, Form.PARQUET, Form.CLOUDFLARE])
def test_an_error_in_the_middle_leaves_the_old_file(
    done: str, sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form
) -> None:
    (tmp_path / "out").write_text("of the last time")
    real = outcomes.iterate_outcomes

    def failing(*arguments: Any, **more: Any) -> Any:
        yield from list(real(*arguments, **more))[:2]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outcomes, "iterate_outcomes", failing)
    with pytest.raises(OutputError, match=r"No space left on device; .*Nothing of it was kept"):
        export(sqlite_database, done, str(tmp_path / "out"), ExportOptions(form))
    assert (tmp_path / "out").read_text() == "of the last time"
    assert [path.name for path in tmp_path.glob(".*")] == []


# --- columns --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, 2], Kind.INTEGER),
        ([1, 2.5], Kind.NUMBER),
        ([True, False], Kind.BOOLEAN),
        ([1, True], Kind.TEXT),
        (["a", 1], Kind.TEXT),
        ([2**63], Kind.TEXT),
        ([None], Kind.TEXT),
        ([[{"role": "user", "content": "x"}], None], Kind.MESSAGES),
        ([[{"role": "user", "content": "x"}], [{"role": "user", "content": ["x"]}]], Kind.TEXT),
        ([[{"role": "user", "content": "x", "name": "y"}]], Kind.TEXT),
        ([[]], Kind.TEXT),
    ],
)
def test_a_field_s_type_holds_all_its_values(values: list[Any], kind: Kind) -> None:
    assert find_request_kinds(json.dumps({"x": value}) for value in values) == {"x": kind}


def test_columns_have_names_of_their_own() -> None:
    kinds = dict.fromkeys(("status", "request_status", "index"), Kind.TEXT)
    columns = result_columns(with_position=False, request_kinds=kinds)
    assert [column.name for column in columns][len(_RESULT_COLUMNS) :] == [
        *("request_request_status", "request_status", "request_index")
    ]
    line = {"request": {"status": "a", "request_status": "b"}}
    assert [column.get(line) for column in columns[len(_RESULT_COLUMNS) :]] == ["a", "b", None]


def test_requests_with_countless_fields_are_one_column(
    store: Any, sqlite_database: Database, finish: Any, tmp_path: Path
) -> None:
    job_id = store({"prompt": "x", **{f"field_{n}": n for n in range(150)}})
    finish(sqlite_database, job_id)
    export(sqlite_database, job_id, str(tmp_path / "out"), ExportOptions(Form.PARQUET, with_input=True))
    table = pq.read_table(tmp_path / "out")
    assert table.column_names == [*_RESULT_COLUMNS, "request"]
    assert json.loads(table.column("request")[0].as_py())["field_149"] == 149


def test_fields_are_columns_with_their_paths_as_names(
    done: str, sqlite_database: Database, tmp_path: Path
) -> None:
    fields = ("custom_id", "result.response", "usage.total_tokens", "request.temperature", "position")
    options = ExportOptions(Form.PARQUET, frozenset({ResultStatus.SUCCEEDED}), fields=fields)
    assert export(sqlite_database, done, str(tmp_path / "out"), options) == 3
    table = pq.read_table(tmp_path / "out")
    assert table.column_names == list(fields)
    assert table.schema.types == [pa.string(), pa.string(), pa.int64(), pa.float64(), pa.int64()]
    assert table.column("usage.total_tokens").to_pylist() == [13, 5, 5]


def test_in_the_order_of_finishing_each_row_has_its_position(
    done: str, sqlite_database: Database, tmp_path: Path
) -> None:
    options = ExportOptions(Form.CSV, order=Order.FINISHED, after=1)
    export(sqlite_database, done, str(tmp_path / "out.csv"), options)
    assert [(row["position"], row["index"]) for row in _csv(tmp_path / "out.csv")] == [
        ("2", "0"),
        ("3", "1"),
        ("4", "3"),
    ]


# --- which form -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path", "input_format", "form"),
    [
        (None, "out.jsonl", InputFormat.CARD, Form.JSONL),
        (None, "-", InputFormat.ARRAY, Form.JSONL),
        (None, "out.CSV", InputFormat.CARD, Form.CSV),
        (None, "out.parquet", InputFormat.OPENAI, Form.PARQUET),
        (None, "out.jsonl", InputFormat.OPENAI, Form.OPENAI),
        (None, "-", InputFormat.CLOUDFLARE, Form.CLOUDFLARE),
        (None, "-", InputFormat.CSV, Form.CSV),
        (None, "out", InputFormat.PARQUET, Form.PARQUET),
        (None, "-", InputFormat.PARQUET, Form.JSONL),
        ("parquet", "-", InputFormat.CARD, Form.PARQUET),
        ("jsonl", "out.csv", InputFormat.OPENAI, Form.JSONL),
    ],
)
def test_the_form_is_the_one_named_or_the_ending_s_or_the_input_s(
    name: str | None, path: str, input_format: InputFormat, form: Form
) -> None:
    assert choose_form(name, path, input_format) is form


def test_without_pyarrow_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for name, path in (("parquet", "-"), (None, "out.parquet")):
        with pytest.raises(SettingsError, match=r"pip install 'promptmill\[export\]'"):
            named_form(name, path)
    with pytest.raises(SettingsError, match="pyarrow"):
        choose_form(None, "out", InputFormat.PARQUET)
    assert choose_form(None, "-", InputFormat.PARQUET) is Form.JSONL
    assert named_form(None, "out.csv") is Form.CSV
