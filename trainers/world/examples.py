"""Print questions of a benchmark, with the true answers beside those of some runs.

    python -m spa3r.trainers.world.examples --data runs/quickstart/benchmark \
        --runs runs/quickstart/text_only runs/quickstart/spa3_vlm

The first question of each type, each about another room where possible. Numbers and letters are as the models wrote
them; a letter is followed by the option that it stands for.
"""

import argparse
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..runs.errors import run_module

WIDTH = 110


def read_lines(file: Path) -> list[dict]:
    """Read a file of JSON lines.

    Raises:
        ValueError: If there is none.
    """
    if not file.is_file():
        raise ValueError(f"There is no `{file}`: run the benchmark first.")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def choose_questions(questions: Iterable[Mapping]) -> list[Mapping]:
    """The first question of each type, about a room that no earlier one is about, if there is such a one."""
    chosen: dict[str, Mapping] = {}
    rooms = set()
    questions = list(questions)
    for kind in dict.fromkeys(question["question_type"] for question in questions):
        of_kind = [question for question in questions if question["question_type"] == kind]
        fresh = [question for question in of_kind if question["scene_name"] not in rooms]
        chosen[kind] = (fresh or of_kind)[0]
        rooms.add(chosen[kind]["scene_name"])
    return list(chosen.values())


def spell_out(answer: str, options: Sequence[str] | None) -> str:
    """An answer as it is, or the option that its letter stands for."""
    return next((option for option in options or () if option.startswith(f"{answer.strip()}.")), answer)


def format_question(question: Mapping, answers: Mapping[str, str]) -> str:
    """A question, the truth, and the answers of each run by its name."""
    text = f"{question['question_type']}, {question['scene_name']}: {question['question']}"
    lines = textwrap.wrap(" ".join(text.split()), WIDTH)
    rows = {"truth": question["ground_truth"], **answers}
    width = max(map(len, rows))
    return "\n".join(
        [*lines, *(f"    {name:<{width}}  {spell_out(answer, question['options'])}" for name, answer in rows.items())]
    )


def main(arguments: Sequence[str] | None = None):
    """Print the examples; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="benchmark, as written by spa3r room-questions")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of runs on it")
    options = parser.parse_args(arguments)
    answers = {
        run.name: {answer["id"]: answer["prediction"] for answer in read_lines(run / "answers.jsonl")}
        for run in options.runs
    }
    for question in choose_questions(read_lines(options.data / "test.jsonl")):
        given = {name: of_run[str(question["id"])] for name, of_run in answers.items()}
        print(format_question(question, given), end="\n\n")


if __name__ == "__main__":
    run_module(main, "spa3r.trainers.world.examples")
