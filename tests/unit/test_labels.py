"""What a label may be: what it is refused for, and that it is said without harm to a terminal."""

import pytest

from db.errors import SettingsError
from db.labels import LabelFilter
from jobs.labels import parse_label_filters, parse_labels


def test_a_label_is_a_key_and_a_value() -> None:
    given = ["team=eval", "run/2.x_y-z=a = b", f"{'k' * 63}={'é' * 255}"]
    assert parse_labels(given) == {"team": "eval", "run/2.x_y-z": "a = b", "k" * 63: "é" * 255}
    assert parse_labels([]) == {}
    assert parse_labels(["a=1", "a=1"]) == {"a": "1"}


def test_a_filter_may_leave_the_value_open() -> None:
    assert parse_label_filters(["team", "night=a=b"]) == [LabelFilter("team"), LabelFilter("night", "a=b")]


@pytest.mark.parametrize("key", ["", "-a", " a", "a b", "é", "a\n", "k" * 64])
def test_a_key_that_is_none_is_refused_on_both_ways(key: str) -> None:
    for parse in (parse_labels, parse_label_filters):
        with pytest.raises(SettingsError, match="a key has 1 to 63 of the letters a to z"):
            parse([f"{key}=x"])


@pytest.mark.parametrize("value", ["", "v" * 256, "a\nb", "a\tb", "\x1b[31m", "\x00", "\udcff", "\u2028"])
def test_a_value_that_is_none_is_refused_on_both_ways(value: str) -> None:
    for parse in (parse_labels, parse_label_filters):
        with pytest.raises(SettingsError, match="a value has 1 to 255 characters") as caught:
            parse([f"team={value}"])
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 200


def test_a_label_without_a_value_says_what_to_give() -> None:
    with pytest.raises(SettingsError, match="--label team: give KEY=VALUE, like team=eval"):
        parse_labels(["team"])


def test_a_key_has_one_value() -> None:
    with pytest.raises(SettingsError, match="--label a is given twice: 1 and 2"):
        parse_labels(["a=1", "b=1", "a=2"])


def test_a_job_has_not_too_many() -> None:
    assert len(parse_labels([f"k{number}=v" for number in range(32)])) == 32
    with pytest.raises(SettingsError, match="33 times; a job has up to 32"):
        parse_labels([f"k{number}=v" for number in range(33)])
