"""Engine arguments: read as JSON where they are JSON, and held against the engine's own names and types."""

from typing import Any, Literal

import pytest

from db.errors import SettingsError
from jobs.engine_args import check_engine_args, parse_engine_args

SECRET = "hunter2"  # noqa: S105  not one of ours

KNOWN: dict[str, Any] = {
    "dtype": Literal["auto", "bfloat16"],
    "enforce_eager": bool,
    "gpu_memory_utilization": float,
    "hf_token": bool | str | None,
    "max_num_seqs": int | None,
    "compilation_config": dict[str, Any] | None,
}


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("max_num_seqs=128", "max_num_seqs", 128),
        ("max-num-seqs=128", "max_num_seqs", 128),
        ("--max-num-seqs=128", "max_num_seqs", 128),
        ("gpu_memory_utilization=0.5", "gpu_memory_utilization", 0.5),
        ("enforce_eager=true", "enforce_eager", True),
        ("enforce_eager=True", "enforce_eager", "True"),
        ("quantization=null", "quantization", None),
        ("dtype=bfloat16", "dtype", "bfloat16"),
        ('dtype="bfloat16"', "dtype", "bfloat16"),
        ('compilation_config={"mode": 3}', "compilation_config", {"mode": 3}),
        ("revision=a=b", "revision", "a=b"),
        ("revision=", "revision", ""),
        ("revision=" + "[" * 100_000, "revision", "[" * 100_000),
    ],
)
def test_a_value_is_json_where_it_is_json_else_text(text: str, name: str, value: object) -> None:
    assert parse_engine_args([text]) == {name: value}


def test_several_are_one_mapping() -> None:
    assert parse_engine_args(["a=1", "b=x"]) == {"a": 1, "b": "x"}
    assert parse_engine_args([]) == {}


@pytest.mark.parametrize("text", [SECRET, f"={SECRET}", f"a b={SECRET}", f"1={SECRET}", ""])
def test_what_is_no_key_and_value_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(SettingsError, match="key=value") as caught:
        parse_engine_args([text])
    assert SECRET not in str(caught.value)


def test_a_name_given_twice_is_refused_however_it_is_written() -> None:
    with pytest.raises(SettingsError, match="max_num_seqs is given twice"):
        parse_engine_args(["max_num_seqs=1", "--max-num-seqs=2"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "auto"),
        ("enforce_eager", False),
        ("gpu_memory_utilization", 0.5),
        ("gpu_memory_utilization", 1),
        ("hf_token", True),
        ("hf_token", SECRET),
        ("max_num_seqs", 64),
        ("max_num_seqs", None),
        ("compilation_config", {"mode": 3}),
        ("compilation_config", 3),  # the engine looks closer
    ],
)
def test_a_value_of_the_right_type_is_taken(name: str, value: object) -> None:
    check_engine_args({name: value}, KNOWN, "here")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("dtype", SECRET, '"auto" or "bfloat16"'),
        ("enforce_eager", "True", "true or false"),
        ("enforce_eager", 1, "true or false"),
        ("gpu_memory_utilization", True, "a number"),
        ("gpu_memory_utilization", SECRET, "a number"),
        ("hf_token", 5, "true or false or text or null"),
        ("max_num_seqs", True, "a whole number or null"),
        ("max_num_seqs", 1.5, "a whole number or null"),
        ("max_num_seqs", {"a": SECRET}, "a whole number or null"),
    ],
)
def test_a_value_of_another_type_is_refused_and_not_shown(name: str, value: object, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_engine_args({name: value}, KNOWN, "here")
    assert str(caught.value) == f"here: engine argument {name} must be {words}"


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        SettingsError, match="here: the engine has no argument max_num_seq; did you mean max_num_seqs"
    ):
        check_engine_args({"enforce_eager": True, "max_num_seq": SECRET}, KNOWN, "here")
    with pytest.raises(SettingsError, match=r"no argument zzz$"):
        check_engine_args({"zzz": 1}, KNOWN, "here")
