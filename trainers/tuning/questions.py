"""Questions of instruction sets, one by one, with what scores their answers, for training by rewards.

A question can be rewarded if it is in the words of VSI-Bench, as `spa3r room-questions` and VSI-590K write it: then
VSI-Bench's own scorers say how good an answer is. Each question of a conversation is asked alone, as benchmarks do.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from ...data_scripts.benchmarks.protocol import to_number
from ...data_scripts.benchmarks.vsi_bench import parse_prompt
from .instruction_data import load_instructions, open_images
from .scene_cache import SceneLatents, with_scene_keys
from .scene_carrier import SCENE_KEY, stand_ins

# Question types of VSI-Bench that stand for all whose answer is a letter or a number: only that decides its scorers.
CHOICE, NUMBER = "object_rel_distance", "object_counting"
COLUMNS = ["question", "ground_truth", "options", "question_type", "scored_as"]


def split_type(text: str) -> tuple[str, float]:
    """Split `TYPE` or `TYPE@WEIGHT` into question type and weight.

    Raises:
        ValueError: If the weight is not a number above 0.
    """
    name, mark, weight = text.rpartition("@")
    if not mark:
        return text, 1.0
    number = to_number(weight)
    if number is None or not 0 < number < math.inf:
        raise ValueError(f"The weight of a question type must be above 0, got `{text}`; leave `@` out for 1.")
    return name, number


def load_questions(instructions: Sequence[str], question_types: Sequence[str], seed: int, with_keys: bool) -> Dataset:
    """Load the questions of instruction sets that can be rewarded.

    Args:
        instructions (`list[str]`): See `load_instructions`.
        question_types (`list[str]`): Question types to ask; an empty list asks all.
        seed (`int`): Decides which records a fraction takes.
        with_keys (`bool`): Whether to add the keys of stored latents.

    Raises:
        ValueError: If a question has no images or no scorer, or a question type does not occur.

    Returns:
        `datasets.Dataset`: With the columns `images`, not decoded, `question`, `ground_truth`, `options` (empty for
        numbers), `question_type`, `scored_as` and, with keys, `scene_key`.
    """
    records = load_instructions(list(instructions), seed, columns=("question_type",))
    if with_keys:
        records = with_scene_keys(records)
    questions = records.map(
        _split_turns, batched=True, batch_size=100, remove_columns=["messages"], desc="Splitting conversations"
    )
    known = np.array(questions["question_type"])
    if unknown := sorted(set(question_types) - set(known.tolist())):
        raise ValueError(
            f"`question_types` names {', '.join(unknown)}, but the instruction sets have questions of "
            f"{', '.join(sorted(set(known.tolist())))}; choose among these."
        )
    if question_types:
        questions = questions.select(np.flatnonzero(np.isin(known, list(question_types))))
    if without := sorted(set(questions.filter(lambda how: not how, input_columns="scored_as")["question_type"])):
        raise ValueError(
            f"Questions of the type {', '.join(f'`{kind}`' for kind in without)} have no scorer, because they are not "
            "in VSI-Bench's words; name the types to train on with `--question_types`."
        )
    return questions


def _split_turns(records: dict[str, list]) -> dict[str, list]:
    """Make a row of each question of some conversations."""
    rows: dict[str, list] = {name: [] for name in (*records, *COLUMNS) if name != "messages"}
    kept = [name for name in records if name not in ("messages", "question_type")]
    for index, messages in enumerate(records["messages"]):
        turns = list(_turns(messages))
        types = (records["question_type"][index] or "").split(",")
        if len(types) != len(turns):
            types = [records["question_type"][index] or "unknown"] * len(turns)
        for kind, (question, answer) in zip(types, turns, strict=True):
            options, scored_as = _how_to_score(question, answer)
            if not records["images"][index]:
                scored_as = ""
            for name in kept:
                rows[name].append(records[name][index])
            for name, value in zip(COLUMNS, (question, answer, options, kind, scored_as), strict=True):
                rows[name].append(value)
    return rows


def _turns(messages: Sequence[dict[str, Any]]):
    """Each question with its answer, as texts."""
    texts = [(message["role"], _text(message["content"])) for message in messages]
    for (role, question), (next_role, answer) in zip(texts, texts[1:], strict=False):
        if (role, next_role) == ("user", "assistant"):
            yield question, answer.strip()


def _text(content: str | Sequence[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content).strip()


def _how_to_score(question: str, answer: str) -> tuple[list[str], str]:
    """The options of a question, and the question type of VSI-Bench that is scored alike; empty if none is."""
    try:
        _, options = parse_prompt(question)
    except ValueError:
        return [], ""
    if options is not None:
        letters = [option.partition(".")[0].strip().lower() for option in options]
        return options, CHOICE if answer.lower() in letters else ""
    number = to_number(answer)
    return [], NUMBER if number is not None and 0 < number < math.inf else ""


def repeat_in_random_order(questions: Dataset, num_passes: int, seed: int) -> Dataset:
    """Passes over questions, each in a random order of its own, as one pass.

    TRL's sampler draws the order of each pass from one stream, which a resumed run would begin anew.
    """
    orders = [np.random.default_rng([seed, number]).permutation(len(questions)) for number in range(num_passes)]
    return questions.select(np.concatenate(orders))


def open_prompts(rows: dict[str, list], stored: SceneLatents | None = None) -> dict[str, list]:
    """What TRL's trainers take: conversations without images, and the images; others columns go to the rewards.

    Where features of the images are stored, stand-ins replace the images.
    """
    has_features = stored is not None and stored.has_vision
    opened: dict[int, list] = {}
    images = []
    for index, of_scene in enumerate(rows["images"]):
        first = next((other for other in range(index) if rows["images"][other] == of_scene), index)
        if first == index:
            key = rows["scene_key"][index] if "scene_key" in rows else None
            opened[index] = stand_ins(stored, key) if has_features else open_images(of_scene)
            for image in opened[index]:
                image.info[SCENE_KEY] = key
        images.append(opened[first])
    prompts = [[{"role": "user", "content": question}] for question in rows["question"]]
    return rows | {"images": images, "prompt": prompts}
