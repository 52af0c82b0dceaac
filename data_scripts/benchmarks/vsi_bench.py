"""VSI-Bench: prompts, scores and aggregates of the official code and of two others whose results are published."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np

from .protocol import Protocol, average_groups, check_groups, check_known, mean, share_of_tolerances, to_number

__all__ = ["PROTOCOLS", "aggregate", "parse_prompt", "write_prompt"]

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
# What follows a question for a number, by lmms-eval's name of the prompt.
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

# float32, as is all that Spatial-MLLM compares.
_STRICT_TOLERANCES = 1 - (0.5 + 0.05 * np.arange(10)).astype(np.float32)


def question_type(record: Mapping[str, Any]) -> str:
    """The question type of a record; `ValueError` if VSI-Bench has none such."""
    return check_known("The question type", record["question_type"], QUESTION_TYPES)


def write_prompt(record: Mapping[str, Any], variant: str = "default", lead: str = LEAD) -> str:
    """Text that follows the frames.

    Args:
        record (`Mapping`): Its `question_type`, `question` and `options` are used.
        variant (`str`, *optional*, defaults to `"default"`):
            lmms-eval's name of a prompt; they differ in how a number is asked for.
        lead (`str`, *optional*): What comes first. Official code says that these are frames of a video, whatever the
            frames are; instruction sets such as VSI-590K repeat the line to the letter, so models may rely on it.
    """
    number_suffix = NUMBER_SUFFIXES[check_known("The prompt", variant, NUMBER_SUFFIXES)]
    if question_type(record) in NUMBER_TYPES:
        return f"{lead}{record['question']}\n{number_suffix}"
    options = "\n".join(record["options"])
    return f"{lead}{record['question']}\nOptions:\n{options}\n{CHOICE_SUFFIX}"


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
    """What official code takes of an answer: all before the first space, without trailing dots, then without space.

    - Only the space separates: "A\\nThe chair" is one token and wrong, "A The chair" is right. Line breaks at an end
      do no harm ("A\\n" is A), as they are stripped last; for the same reason "A.\\n" stays "A." and is wrong.
    - A leading space leaves nothing: " A" and " 3" are wrong. It matters with tokenizers that begin answers so.
    - Only dots are dropped, and any number of them: "A.." is A, but "A)", "(A)", "A,", "**A**" are wrong.
    - An article counts as a choice: "A chair" and "a chair" are A, as are "A or B" and "A. chair; B. table".
    - Reasons or a lead are fatal: "The answer is A" is "The", "about 3" is "about".
    """
    return prediction.partition(" ")[0].rstrip(".").strip()


def find_number(text: str) -> float | None:
    """What lmms-eval takes of an answer in numbers since 2026-07-14 (eab6655): the first number, in digits or words.

    Whichever comes first wins, so "one room has 3 chairs" is 1.

    - Any place counts: "There are 3 chairs", " 3", "3.5m", "**3**", "A. 3" are right, which are all wrong officially.
    - Digits end at whatever else: "1,200" is 1, "3.5.2" is 3.5; but so are "1e3" and "1_200" 1, and ".5" is 5, which
      Python's `float` reads officially as they are meant. So an answer may also score less than officially.
    - A minus belongs to the number wherever it stands: "-3" is -3, but also "room-3"; "3-4" is 3.
    - "inf" and "nan" are no numbers, which Python's `float` reads officially.
    - Words are those of `NUMBER_WORDS`: neither "half", "a", "dozen", "million" nor "point".
    - Words of a number may stand apart, as only another word ends it: "twenty-one" is 21, "one hundred and twenty" is
      120, but also "two, three" is 5, and "one 7 two" is 3. "and" never ends it.
    - A hundred multiplies what was said before, also a thousand, if anything was: "twelve hundred" is 1,200,
      "thousand" 1,000.
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
    """Mean relative accuracy.

    - Ground truth of zero is an error, `ZeroDivisionError`, wherever the answer is a number; with another answer the
      score is 0. The published questions have none.
    - The error is divided by the truth with its sign, so that where truth is negative any number scores 1.
    - Infinity for infinity scores 0, as does anything if one of both is not a number.
    """
    if prediction is None or truth is None:
        return 0.0
    return share_of_tolerances(abs(prediction - truth) / truth)


def _score_choice(record: Mapping[str, Any], prediction: str) -> float:
    """1 if the first token is the letter, in capitals or not. Ground truth is taken as it is: "A." is never met."""
    return float(first_token(prediction).lower() == record["ground_truth"].lower())


def score_official(record: Mapping[str, Any], prediction: str) -> float:
    """Score by the first token of an answer; see `first_token` and, for numbers, `to_number`.

    Args:
        record (`Mapping`): Its `question_type` and `ground_truth` are used.
        prediction (`str`): The answer.

    Raises:
        ValueError: If the question type is not known.
        ZeroDivisionError: If a number is to be compared with 0.
    """
    if question_type(record) in CHOICE_TYPES:
        return _score_choice(record, prediction)
    return _score_number(to_number(first_token(prediction)), to_number(record["ground_truth"]))


def score_lmms_eval_2026(record: Mapping[str, Any], prediction: str) -> float:
    """Score as `score_official`, but by the first number in an answer; see `find_number`. Choices score as ever.

    Ground truth is still read by `to_number`: were it "1,200", nothing would score.
    """
    if question_type(record) in CHOICE_TYPES:
        return _score_choice(record, prediction)
    return _score_number(find_number(prediction), to_number(record["ground_truth"]))


def score_spatial_mllm(record: Mapping[str, Any], prediction: str) -> float:
    """Score the whole of an answer, in Spatial-MLLM's manner.

    - What the last `<answer>...</answer>` holds counts, else all. Space of any kind is one space, at the ends none;
      then dots at the end are dropped. So " A" and "A\\n" are right; "A chair" and "A. chair" are wrong, not A.
    - Ground truth is cleaned in the same way, so "A." is met by "a".
    - Numbers lose their commas: "1,200" is 1200, but "1,5" is 15. Units are not dropped: "3.5 m" scores 0.
    - Errors are taken in float32, of the truth without its sign and plus 1e-8, and must be *below* a tolerance. So 1.1
      for 1 keeps eight tolerances, not nine, and 0 for 0 keeps all. Scores are float32, too: 0.699999988079071.
    """
    given, truth = _clean(prediction), _clean(record["ground_truth"])
    if question_type(record) in CHOICE_TYPES:
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


def _join_directions(means: Mapping[str, float]) -> dict[str, float]:
    """Means of the eight tasks: the directions' is the plain mean of those difficulties that there are."""
    directions = [means[direction] for direction in DIRECTIONS if direction in means]
    joined = {kind: value for kind, value in means.items() if kind not in DIRECTIONS}
    return joined | ({"object_rel_direction": mean(directions)} if directions else {})


def summarize(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """The columns of the paper's table by means of question types; see `Protocol`.

    Overall is the plain mean of the tasks, not of the questions, and the direction's three difficulties count as one
    task. Where types are missing it is the mean of the tasks that there are, as VLM-3R does it, instead of the errors
    or odd means of others (see `aggregate`); on the whole benchmark all give the same number.
    """
    check_groups("VSI-Bench", "The question type", means, QUESTION_TYPES)
    tasks = _join_directions(means)
    return {"overall": mean(tasks.values())} | {task: tasks[task] for task in TASKS if task in tasks}


def aggregate(
    question_types: Sequence[str], scores: Sequence[float], code: str = "thinking-in-space"
) -> dict[str, float | str]:
    """What some official code prints, under its keys and in its scale.

    - `thinking-in-space`: percent, with the table as text. Difficulties of the direction are joined only if there are
      easy ones; a `KeyError` if then another is missing. Without easy ones the others count as tasks of their own in
      `overall`, but are not shown.
    - `lmms-eval`: fractions, in alphabetical order. A `KeyError` unless there are all three difficulties. Newer
      versions round to six digits, which is not done here.
    - `vg-llm`: the overall score alone in percent, with the same `KeyError`.
    - `vlm-3r`: the overall score alone in percent, the direction's from the difficulties that there are.

    Args:
        question_types (`Sequence[str]`): Of each answer.
        scores (`Sequence[float]`): Of each answer.
        code (`str`, *optional*, defaults to `"thinking-in-space"`): Whose.
    """
    check_known("The code", code, ("thinking-in-space", "lmms-eval", "vg-llm", "vlm-3r"))
    means, _ = average_groups(question_types, scores)
    means = {check_known("The question type", kind, QUESTION_TYPES): means[kind] for kind in sorted(means)}
    if code != "vlm-3r" and (code != "thinking-in-space" or DIRECTIONS[0] in means):
        for direction in DIRECTIONS:
            if direction not in means:
                raise KeyError(f"{direction}_accuracy")
    joined = means if code == "thinking-in-space" and DIRECTIONS[0] not in means else _join_directions(means)
    overall = mean(joined.values())
    if code in ("vg-llm", "vlm-3r"):
        return {"overall": 100 * overall}
    if code == "lmms-eval":
        return {_key(task): value for task, value in joined.items()} | {"overall": overall}
    table = {"overall": 100 * overall} | {_key(task): 100 * joined[task] for task in TASKS if task in joined}
    return table | {
        "tabulated_keys": ", ".join(table),
        "tabulated_results": ", ".join(f"{value:.3f}" for value in table.values()),
    }


def _key(task: str) -> str:
    return task + ("_MRA:.5:.95:.05" if task in NUMBER_TYPES else "_accuracy")


_SHARED = {"group": question_type, "summarize": summarize, "columns": COLUMNS}
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="official",
            source="thinking-in-space@51e089c, as lmms-eval before 2026-07-14 (04a5103) and VG-LLM",
            prompt=write_prompt,
            score=score_official,
            max_new_tokens=16,
            **_SHARED,
        ),
        Protocol(
            name="lmms-eval-2026",
            source="lmms-eval@75571cf: the first number or number word anywhere in an answer",
            prompt=write_prompt,
            score=score_lmms_eval_2026,
            max_new_tokens=16,
            **_SHARED,
        ),
        Protocol(
            name="spatial-mllm",
            source="Spatial-MLLM@9fc4738: the whole answer, errors below a tolerance in float32; asked greedily here",
            prompt=partial(write_prompt, lead=""),
            score=score_spatial_mllm,
            max_new_tokens=1024,
            **_SHARED,
        ),
    )
}
