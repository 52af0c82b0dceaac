"""Answers on disk: those of a run in progress, and those of any program in a file."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...data_scripts.benchmarks.reader import BenchmarkQuestion
from ...data_scripts.common.files import write_text
from .formatting import clip, first_few


class Answers:
    """Answers in a folder, one line of JSON each, appended by any number of processes.

    Each process appends to its own file. The last line of a killed process may be cut; reading skips it. Lines are
    ASCII, because answers may hold characters that end a line, or half a character.

    Args:
        folder (`Path`): Output folder of the run.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.merged = folder / "predictions.jsonl"

    def read(self) -> dict[str, dict[str, str]]:
        """Read all answers by question id: the `prediction`, or why the images are `unreadable`."""
        answers = {}
        for file in (self.merged, *sorted(self.folder.glob("predictions-*.jsonl"))):
            for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
                try:
                    answer = json.loads(line)
                except json.JSONDecodeError:
                    continue
                answers[answer.pop("id")] = answer
        return answers

    def append(self, process_index: int, answers: Mapping[str, Mapping[str, str]]):
        """Write the answers to a batch."""
        with (self.folder / f"predictions-{process_index:05d}.jsonl").open("a", encoding="utf-8") as file:
            file.write(_to_lines(answers))

    def merge(self, questions: Sequence[BenchmarkQuestion]) -> dict[str, dict[str, str]]:
        """Move all answers into one file in the order of the questions. No process may append meanwhile.

        Answers to other questions, whose images are gone now, are kept at the end of the file, but not returned.
        """
        answers = self.read()
        known = {question.id: answers.pop(question.id) for question in questions if question.id in answers}
        write_text(self.merged, _to_lines(known | answers))
        for file in self.folder.glob("predictions-*.jsonl"):
            file.unlink()
        return known


def _to_lines(answers: Mapping[str, Mapping[str, str]]) -> str:
    return "".join(json.dumps({"id": name, **answer}) + "\n" for name, answer in answers.items())


def read_predictions(
    path: str | os.PathLike, questions: Sequence[BenchmarkQuestion], allow_missing: bool = False
) -> dict[str, str]:
    """Read answers of any program: JSON lines with `id` and `prediction`. Other fields are ignored.

    Args:
        path (`str` or `os.PathLike`): The file.
        questions (`Sequence[BenchmarkQuestion]`): All questions.
        allow_missing (`bool`, *optional*, defaults to `False`): Whether questions may have no answer.

    Returns:
        `dict[str, str]`: Answers by question id, in the order of the questions.

    Raises:
        ValueError: If the file is empty, a line is not an answer, an answer belongs to no question, or a question has
            no answer or several.
    """
    predictions: dict[str, str] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is not text in UTF-8 ({error}); give a file of JSON lines.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, prediction = _parse_prediction(f"Line {number} of `{path}`", line)
        if name in predictions:
            raise ValueError(f"Line {number} of `{path}` answers question {name} again; keep one answer to each.")
        predictions[name] = prediction
    if not predictions:
        raise ValueError(f"`{path}` holds no answers; give JSON lines with `id` and `prediction`.")
    known = {question.id for question in questions}
    if foreign := [name for name in predictions if name not in known]:
        raise ValueError(
            f"`{path}` answers {len(foreign):,} questions that are not in the benchmark ({first_few(foreign)}); "
            "remove them, or name the benchmark and data that they belong to."
        )
    missing = [question.id for question in questions if question.id not in predictions]
    if missing and not allow_missing:
        raise ValueError(
            f"`{path}` lacks answers to {len(missing):,} of {len(known):,} questions ({first_few(missing)}); add them "
            "(an answer may be empty), or leave these questions out with --skip-missing."
        )
    return {question.id: predictions[question.id] for question in questions if question.id in predictions}


def _parse_prediction(where: str, line: str) -> tuple[str, str]:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error.msg}); give an object with `id` and `prediction`.") from error
    if not isinstance(content, dict) or not {"id", "prediction"} <= content.keys():
        raise ValueError(f"{where} must be an object with `id` and `prediction`, got {clip(line, 80)}")
    name, prediction = content["id"], content["prediction"]
    # Some benchmarks number their questions.
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError(f"{where} must have a text or a whole number as `id`, got {clip(line, 80)}")
    if not isinstance(prediction, str):
        raise ValueError(f"{where} must have a text as `prediction`, got {clip(line, 80)}")
    return str(name), prediction
