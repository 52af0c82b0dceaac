"""Recorded scores of the official code of benchmarks, in `SPA3R_CASES_DIR`, by default beside the checkout."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from spa3r.data_scripts.benchmarks import Protocol
from spa3r.data_scripts.benchmarks.protocol import average_groups

CASES = Path(os.environ.get("SPA3R_CASES_DIR") or Path(__file__).resolve().parents[3] / "shared" / "cases")
TOLERANCE = 1e-9
# lmms-eval and thinking-in-space add it to the name of what they average.
METRIC = re.compile(r"_(MRA:.*|accuracy|vci_metric)$")


def recorded(name: str, kind: str) -> list[dict[str, Any]]:
    """Cases of a kind. The test is skipped if none are recorded."""
    path = CASES / f"{name}_cases.json"
    cases = json.loads(path.read_text(encoding="utf-8")).get(kind) if path.is_file() else None
    return cases or pytest.skip(f"no {kind} at {path}")


def outcome(function: Callable, *arguments) -> Any:
    """Return what a function returns, or the name of its exception, as it is recorded."""
    try:
        return function(*arguments)
    except Exception as error:  # whatever the official code raised
        return {"raises": type(error).__name__}


def agrees(value: Any, expected: Any) -> bool:
    """Compare with a recorded value: numbers within 1e-9, exceptions by name."""
    if isinstance(expected, dict):
        return isinstance(value, dict) and value.get("raises") == expected["raises"]
    if isinstance(expected, list):
        return len(value) == len(expected) and all(map(agrees, value, expected))
    if isinstance(expected, bool | str) or expected is None:
        return value == expected
    return not isinstance(value, str | dict | None) and abs(value - expected) <= TOLERANCE


def assert_all_agree(cases: Iterable[Mapping[str, Any]], functions: Mapping[str, Callable]):
    """Compare recorded outputs with ours.

    Args:
        cases (`Iterable[Mapping]`): Inputs and outputs together.
        functions (`Mapping[str, Callable]`): Compute an output from a case, by its key. A case may lack the key.
    """
    wrong, compared = [], 0
    for case in cases:
        for key in functions.keys() & case.keys():
            value = outcome(functions[key], case)
            compared += 1
            if not agrees(value, case[key]):
                wrong.append((key, value, case))
    assert not wrong, f"{len(wrong)} of {compared} outputs differ, the first: {wrong[0]}"


def scores_and_figures(protocol: Protocol, docs: Sequence[Mapping[str, Any]]) -> tuple[list[float], dict[str, float]]:
    """Score answered documents, and average the scores by group and by column."""
    scores = [protocol.score(doc, doc["prediction"]) for doc in docs]
    means, counts = average_groups([protocol.group(doc) for doc in docs], scores)
    return scores, means | protocol.average(means, counts)


def assert_figures_agree(figures: Mapping[str, float], expected: Mapping[str, Any], scale: float = 1):
    """Compare recorded averages with ours. A column without questions is 0 in official code, and left out in ours."""
    for key, value in expected.items():
        if not isinstance(value, str):  # a table as text
            assert agrees(scale * figures.get(METRIC.sub("", key), 0.0), value), key
