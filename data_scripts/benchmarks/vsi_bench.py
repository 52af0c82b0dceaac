"""VSI-Bench: its files, its prompts, its scores by the official code and two others, and published figures."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np

from .protocol import Benchmark, Protocol, ReferenceRow, check_known, mean, share_of_tolerances, to_number

DIRECTIONS = tuple(f"object_rel_direction_{level}" for level in ("easy", "medium", "hard"))
CHOICE_TYPES = (*DIRECTIONS, "object_rel_distance", "route_planning", "obj_appearance_order")
NUMBER_TYPES = ("object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation")
QUESTION_TYPES = (*CHOICE_TYPES, *NUMBER_TYPES)
COLUMNS = {
    "overall": "Avg.",
    "object_counting": "Obj. Count",
    "object_abs_distance": "Abs. Dist.",
    "object_size_estimation": "Obj. Size",
    "room_size_estimation": "Room Size",
    "object_rel_distance": "Rel. Dist.",
    "object_rel_direction": "Rel. Dir.",
    "route_planning": "Route Plan",
    "obj_appearance_order": "Appr. Order",
}
TASKS = tuple(column for column in COLUMNS if column != "overall")

LEAD = "These are frames of a video.\n"
CHOICE_SUFFIX = "Answer with the option's letter from the given choices directly."
# What follows a question whose answer is a number, by lmms-eval's name of the prompt.
NUMBER_SUFFIXES = {
    "default": "Please answer the question using a single word or phrase.",
    "gemini_api": "Do not response anything other than a single number!",
    "gpt4v": "Do not response anything other than a single number!",
    "neo_ov": "Answer briefly and directly in one float number.",
}

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
)
_UNITS += ["seventeen", "eighteen", "nineteen"]
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBER_WORDS = {word: value for value, word in enumerate(_UNITS)}
NUMBER_WORDS |= {word: 10 * value for value, word in enumerate(_TENS, start=2)}
NUMBER_WORDS |= {"hundred": 100, "thousand": 1000}
_DIGITS = re.compile(r"-?\d+(\.\d+)?")
_WORDS = re.compile("[a-z]+")

# Spatial-MLLM compares in float32.
_STRICT_TOLERANCES = 1 - (0.5 + 0.05 * np.arange(10)).astype(np.float32)


def write_prompt(record: Mapping[str, Any], variant: str = "default", lead: str = LEAD) -> str:
    """Write the text that follows the frames.

    Args:
        record (`Mapping`): Record with `question_type`, `question` and `options`.
        variant (`str`, *optional*, defaults to `"default"`):
            lmms-eval's name of the prompt. Variants differ in how they ask for a number.
        lead (`str`, *optional*):
            First line. The official code says that these are frames of a video whatever the images are. Instruction
            sets such as VSI-590K repeat this line to the letter, so models may rely on it.

    Raises:
        ValueError: If the question type or the variant is not known.
    """
    number_suffix = NUMBER_SUFFIXES[check_known("variant", variant, NUMBER_SUFFIXES)]
    if _asks_for_choice(record):
        options = "\n".join(record["options"])
        return f"{lead}{record['question']}\nOptions:\n{options}\n{CHOICE_SUFFIX}"
    return f"{lead}{record['question']}\n{number_suffix}"


def _asks_for_choice(record: Mapping[str, Any]) -> bool:
    return check_known("question_type", record["question_type"], QUESTION_TYPES) in CHOICE_TYPES


def parse_prompt(text: str) -> tuple[str, list[str] | None]:
    """Split a text that `write_prompt` wrote, with its defaults, into the question and its options.

    Raises:
        ValueError: If the text is not such a prompt.
    """
    number_end, choice_end = f"\n{NUMBER_SUFFIXES['default']}", f"\n{CHOICE_SUFFIX}"
    if text.startswith(LEAD) and text.endswith(number_end):
        return text[len(LEAD) : -len(number_end)], None
    if text.startswith(LEAD) and text.endswith(choice_end) and "\nOptions:\n" in text:
        question, _, options = text[len(LEAD) : -len(choice_end)].partition("\nOptions:\n")
        return question, options.split("\n")
    raise ValueError(f"Not a prompt in VSI-Bench's words: {text!r}; give one as `write_prompt` writes it.")


def first_token(prediction: str) -> str:
    """Return the part of an answer that the official code scores: up to the first space, without dots at its end.

    - Only a space separates: "A\\nThe chair" is one token and wrong, "A The chair" is right. Line breaks at the end do
      no harm ("A\\n" is A), because they are stripped last; so "A.\\n" stays "A." and is wrong.
    - A leading space leaves an empty token: " A" and " 3" are wrong. Some tokenizers begin answers with a space.
    - Only dots are dropped, any number of them: "A.." is A, but "A)", "(A)", "A,", "**A**" are wrong.
    - An article counts as a choice: "A chair" and "a chair" are A, and so are "A or B" and "A. chair; B. table".
    - Words before the answer make it wrong: "The answer is A" gives "The", "about 3" gives "about".
    """
    return prediction.partition(" ")[0].rstrip(".").strip()


def find_number(text: str) -> float | None:
    """Return the number that lmms-eval has scored since 2026-07-14 (eab6655): the first one, in digits or in words.

    The earlier of digits and words wins: "one room has 3 chairs" is 1.

    - The number may stand anywhere: "There are 3 chairs", " 3", "3.5m", "**3**", "A. 3" are right; the official code
      counts all of them as wrong.
    - Digits end at any other character: "1,200" is 1 and "3.5.2" is 3.5. But "1e3" and "1_200" are 1, and ".5" is 5,
      which Python's `float`, and so the official code, reads as they are meant. So an answer may also lose.
    - A minus always belongs to the number: "-3" is -3, but so is "room-3"; "3-4" is 3.
    - "inf" and "nan" are not numbers; the official code reads them.
    - Number words are those of `NUMBER_WORDS`, without "half", "a", "dozen", "million" and "point".
    - Only another word ends a number in words: "twenty-one" is 21 and "one hundred and twenty" is 120, but "two,
      three" is 5, and "one 7 two" is 3. "and" never ends it.
    - "hundred" multiplies the words before it, and so does "thousand": "twelve hundred" is 1,200, "thousand" 1,000.
    """
    text = text.lower()
    digits = _DIGITS.search(text)
    words = [(match.start(), match.group()) for match in _WORDS.finditer(text)]
    first = next((index for index, (_, word) in enumerate(words) if word in NUMBER_WORDS), None)
    if digits is not None and (first is None or digits.start() < words[first][0]):
        return float(digits.group())
    if first is None:
        return None
    return _add_up(word for _, word in takewhile(lambda w: w[1] == "and" or w[1] in NUMBER_WORDS, words[first:]))


def _add_up(words: Iterable[str]) -> float:
    thousands = rest = 0
    for word in words:
        if word == "thousand":
            thousands, rest = thousands + 1000 * max(rest, 1), 0
        elif word == "hundred":
            rest = 100 * max(rest, 1)
        elif word != "and":
            rest += NUMBER_WORDS[word]
    return float(thousands + rest)


def _score_number(prediction: float | None, truth: float | None) -> float:
    """Mean relative accuracy of a number.

    - A truth of zero raises `ZeroDivisionError` if the answer is a number, and scores 0 otherwise. The published
      questions have none.
    - The error is divided by the signed truth, so any number scores 1 against a negative truth.
    - Infinity for infinity scores 0, and so does NaN on either side.
    """
    if prediction is None or truth is None:
        return 0.0
    return share_of_tolerances(abs(prediction - truth) / truth)


def _score(record: Mapping[str, Any], prediction: str, read_number: Callable[[str], float | None]) -> float:
    """Score a choice by its first token, ignoring case, and a number by the function that reads it.

    The truth is not cleaned: no answer matches a truth of "A.", and none scores against "1,200".
    """
    if _asks_for_choice(record):
        return float(first_token(prediction).lower() == record["ground_truth"].lower())
    return _score_number(read_number(prediction), to_number(record["ground_truth"]))


def score_official(record: Mapping[str, Any], prediction: str) -> float:
    """Score the first token of an answer; see `first_token` and, for numbers, `to_number`.

    Args:
        record (`Mapping`): Record with `question_type` and `ground_truth`.
        prediction (`str`): The answer.

    Raises:
        ValueError: If the question type is not known.
        ZeroDivisionError: If the truth is 0 and the answer is a number.
    """
    return _score(record, prediction, lambda text: to_number(first_token(text)))


def score_lmms_eval_2026(record: Mapping[str, Any], prediction: str) -> float:
    """Score as `score_official`, but numbers by `find_number`."""
    return _score(record, prediction, find_number)


def score_spatial_mllm(record: Mapping[str, Any], prediction: str) -> float:
    """Score the whole answer, as Spatial-MLLM does.

    - The last `<answer>...</answer>` counts, or the whole text without one. Whitespace collapses to single spaces and
      is stripped; then dots at the end are dropped. So " A" and "A\\n" are right, "A chair" and "A. chair" are wrong.
    - Ground truth is cleaned the same way, so "a" matches "A.".
    - Numbers lose their commas: "1,200" is 1200, but "1,5" is 15. Units stay: "3.5 m" scores 0.
    - Errors are computed in float32, relative to the absolute truth plus 1e-8, and must be *below* a tolerance. So 1.1
      for 1 keeps eight tolerances, not nine, and 0 for 0 keeps all. Scores are float32, too: 0.699999988079071.
    """
    given, truth = _clean(prediction), _clean(record["ground_truth"])
    if _asks_for_choice(record):
        return float(given.strip() == truth.strip())
    numbers = [to_number(text.replace(",", "")) for text in (given, truth)]
    if None in numbers:
        return 0.0
    with np.errstate(all="ignore"):
        predicted, true = np.array(numbers).astype(np.float32)
        error = abs(predicted - true) / (abs(true) + np.float32(1e-8))
        return float((error < _STRICT_TOLERANCES).mean(dtype=np.float32))


def _clean(text: str) -> str:
    answers = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return " ".join((answers[-1] if answers else text).split()).rstrip(".").lower()


def average_tasks(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Average question types into the columns of the paper's Tab. 1; see `Protocol`.

    Overall is the mean over the eight tasks, not over questions. The three difficulties of the relative direction are
    averaged into one task.

    Where question types are missing, official codes differ; this one averages the tasks that there are, as VLM-3R
    does. thinking-in-space counts the difficulties as tasks of their own if the easy one is missing. lmms-eval and
    VG-LLM raise a `KeyError` unless all three are there. On the whole benchmark all agree.
    """
    directions = [means[direction] for direction in DIRECTIONS if direction in means]
    tasks = {kind: value for kind, value in means.items() if kind not in DIRECTIONS}
    if directions:
        tasks["object_rel_direction"] = mean(directions)
    return {"overall": mean(tasks.values())} | {task: tasks[task] for task in TASKS if task in tasks}


OFFICIAL = Protocol(
    name="official",
    source="thinking-in-space@51e089c, as lmms-eval before 2026-07-14 (04a5103) and VG-LLM",
    prompt=write_prompt,
    score=score_official,
    group_by="question_type",
    groups=QUESTION_TYPES,
    truth="ground_truth",
    average=average_tasks,
    columns=COLUMNS,
    max_new_tokens=16,
)
LMMS_EVAL_2026 = replace(
    OFFICIAL,
    name="lmms-eval-2026",
    source="lmms-eval@75571cf: the first number or number word anywhere in an answer",
    score=score_lmms_eval_2026,
)
SPATIAL_MLLM = replace(
    OFFICIAL,
    name="spatial-mllm",
    source="Spatial-MLLM@9fc4738: the whole answer, errors below a tolerance in float32; asked greedily here",
    prompt=partial(write_prompt, lead=""),
    score=score_spatial_mllm,
    max_new_tokens=1024,
)

VSI_PAPER, TABLE_1 = "arXiv:2412.14171, Tab. 1", "arXiv:2602.21186, Tab. 1"


def _row(label: str, overall: float, tasks: Sequence[float], source: str = TABLE_1) -> ReferenceRow:
    """A row with all columns of the table, in its order."""
    return ReferenceRow(label, {"overall": overall} | dict(zip(TASKS, tasks, strict=True)), source)


# As printed. The average of the tasks is 35.5 instead of 34.0 for the most frequent answer, and lower than printed by
# 1.8 for both Qwen2.5VL and by 1.5 for Spatial-MLLM-4B.
PUBLISHED = (
    ReferenceRow(
        "Chance, random choice",
        {
            "object_rel_distance": 25.0,
            "object_rel_direction": 36.1,
            "route_planning": 28.3,
            "obj_appearance_order": 25.0,
        },
        VSI_PAPER,
    ),
    _row("Chance, most frequent answer", 34.0, [62.1, 32.0, 29.9, 33.1, 25.1, 47.9, 28.4, 25.2], VSI_PAPER),
    _row("GPT-4o", 34.0, [46.2, 5.3, 43.8, 38.2, 37.0, 41.3, 31.5, 28.5]),
    _row("Gemini-1.5-Flash", 42.1, [49.8, 30.8, 53.5, 54.4, 37.7, 41.0, 31.5, 37.8]),
    _row("Gemini-1.5-Pro", 45.4, [56.2, 30.9, 64.1, 43.6, 51.3, 46.3, 36.0, 34.6]),
    _row("InternVL2-8B", 37.5, [31.3, 29.0, 48.9, 44.2, 38.0, 33.4, 28.9, 46.4]),
    _row("VILA-1.5-8B", 28.9, [17.4, 21.8, 50.3, 18.8, 32.1, 34.8, 31.0, 24.8]),
    _row("LLaVA-Video-7B", 35.6, [48.5, 14.0, 47.8, 24.2, 43.5, 42.4, 34.0, 30.6]),
    _row("LLaVA-OneVision-7B", 32.4, [47.7, 20.2, 47.4, 12.3, 42.5, 35.2, 29.4, 24.4]),
    _row("Qwen2.5VL-3B", 30.6, [24.3, 24.7, 31.7, 22.6, 38.3, 41.6, 26.3, 21.2]),
    _row("Qwen2.5VL-7B", 33.0, [40.9, 14.8, 43.4, 10.7, 38.6, 38.5, 33.0, 29.8]),
    _row("Spatial-MLLM-4B", 48.4, [65.3, 34.8, 63.1, 45.1, 41.3, 46.2, 33.5, 46.3]),
    _row("VG-LLM-4B", 47.3, [66.0, 37.8, 55.2, 59.2, 44.6, 45.6, 33.5, 36.4]),
    _row("VG-LLM-8B", 50.7, [67.9, 37.7, 58.6, 62.0, 46.6, 40.7, 32.4, 59.2]),
    _row("Cambrian-S-3B", 57.3, [70.7, 40.6, 68.0, 46.3, 64.8, 61.9, 27.3, 78.8]),
    _row("Spa3-VLM-4B", 58.6, [69.0, 39.3, 70.6, 62.8, 57.9, 59.5, 36.1, 73.6]),
)
# arXiv:2602.21186, Tab. 3-7: ablations of Spa3-VLM-4B on VSI-Bench. By table and variant, in percent: numerical
# answers, multiple choice, average.
ABLATIONS: dict[str, dict[str, tuple[float, float, float]]] = {
    "Tab. 3: spatial representation": {
        "none": (58.4, 43.5, 50.9),
        "VGGT features": (60.5, 49.5, 55.1),
        "Spa3R latents": (60.4, 56.8, 58.6),
    },
    "Tab. 4: target features": {
        "VGGT": (60.5, 54.4, 57.5),
        "DINO": (59.0, 54.4, 56.7),
        "CLIP": (59.5, 44.3, 51.9),
        "VGGT + DINO": (60.4, 56.8, 58.6),
    },
    "Tab. 5: integration into the VLM": {
        "none": (58.4, 43.5, 50.9),
        "sequence append": (58.5, 43.7, 51.1),
        "cross-attention": (60.4, 56.8, 58.6),
    },
    "Tab. 6: share of masked views": {
        "25 %": (58.9, 56.1, 57.5),
        "50 %": (60.4, 56.8, 58.6),
        "75 %": (59.6, 56.7, 58.1),
    },
    "Tab. 7: camera embedding": {
        "Plücker": (59.9, 55.4, 57.6),
        "PRoPE": (60.4, 56.8, 58.6),
    },
}

VSI_BENCH = Benchmark(
    name="vsi-bench",
    title="VSI-Bench",
    protocols=(OFFICIAL, LMMS_EVAL_2026, SPATIAL_MLLM),
    question_files=("test.jsonl", "test-*.parquet"),
    columns=("id", "dataset", "scene_name", "question_type", "question", "ground_truth", "options"),
    id_column="id",
    scene_column="scene_name",
    # As the published zip files unpack.
    media_paths=lambda record: [f"{record['dataset']}/{record['scene_name']}.mp4"],
    sizes=(5130,),
    how_to_get="hf download nyu-visionx/VSI-Bench --repo-type dataset --local-dir ...",
    published=PUBLISHED,
)
