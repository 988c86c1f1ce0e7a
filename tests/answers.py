"""Holding results against a card's output schema, by the reference implementation."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import jsonschema

from jobs.cards import Card


def assert_results_satisfy(card: Card, results: Iterable[Mapping[str, Any]]) -> int:
    """Every succeeded one does: an object, or an event stream whose every event does. The number of streams."""
    validator = jsonschema.Draft202012Validator(card.output_schema)
    num_streams = 0
    for line in results:
        assert line["status"] == "succeeded", line["error"]
        validator.validate(line["result"])
        if isinstance(line["result"], str):
            num_streams += 1
            *events, end, rest = line["result"].split("\n\n")
            assert (end, rest) == ("data: [DONE]", "")
            for event in events:
                piece = json.loads(event.removeprefix("data: "))
                validator.validate(piece)
                assert isinstance(piece["response"], str)
        else:
            assert isinstance(line["result"]["response"], str)
    return num_streams
