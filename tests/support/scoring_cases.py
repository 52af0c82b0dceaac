"""Recorded scores of the official code of benchmarks, in `SPA3R_CASES_DIR`, by default beside the checkout."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

CASES = Path(os.environ.get("SPA3R_CASES_DIR") or Path(__file__).resolve().parents[3] / "shared" / "cases")
TOLERANCE = 1e-9


def needs_scores(name: str):
    """Skip tests where there is no such file."""
    path = CASES / f"{name}_cases.json"
    return pytest.mark.skipif(not path.is_file(), reason=f"no cases at {path}")


def recorded_scores(name: str) -> dict[str, Any]:
    """The contents of a file, whole."""
    return json.loads((CASES / f"{name}_cases.json").read_text(encoding="utf-8"))


def outcome(function: Callable, *arguments) -> Any:
    """What a function gives, or the name of what it raises, as it is recorded."""
    try:
        return function(*arguments)
    except Exception as error:  # whatever the official code raised
        return {"raises": type(error).__name__}


def agrees(value: Any, expected: Any) -> bool:
    """Equal, numbers within 1e-9; dictionaries with the same keys in order, but what was raised by its name alone."""
    if isinstance(expected, dict):
        if "raises" in expected:
            return isinstance(value, dict) and value.get("raises") == expected["raises"]
        return list(value) == list(expected) and all(agrees(value[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(value) == len(expected) and all(map(agrees, value, expected))
    if isinstance(expected, bool | str) or expected is None:
        return value == expected
    return not isinstance(value, str | dict | None) and abs(value - expected) <= TOLERANCE


def assert_all_agree(cases: Iterable[Mapping[str, Any]], functions: Mapping[str, Callable], ignored: set[str]):
    """Compare every recorded output of every case with what a function makes of the case.

    Args:
        cases (`Iterable[Mapping]`): Inputs and outputs together.
        functions (`Mapping[str, Callable]`): By the key of the output. A case may lack it.
        ignored (`set[str]`): Keys of inputs. Any other key that has no function is a failure.
    """
    wrong, compared = [], 0
    for case in cases:
        assert case.keys() <= functions.keys() | ignored, f"not compared: {case.keys() - functions.keys() - ignored}"
        for key in functions.keys() & case.keys():
            value = outcome(functions[key], case)
            compared += 1
            if not agrees(value, case[key]):
                wrong.append((key, value, case))
    assert compared, "there are no cases"
    assert not wrong, f"{len(wrong)} of {compared} outputs differ, the first: {wrong[0]}"
