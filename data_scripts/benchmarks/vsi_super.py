"""VSI-SUPER: objects counted, and the order of events recalled, in videos of 10 minutes to 4 hours; by lmms-eval.

The questions of a streaming split ask for a count at several times of a video. Like lmms-eval, the engine asks once,
after the video, and scores a JSON list of counts; it shows no stream. What VSI-SUPER measures is disputed
(arXiv:2511.16655).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .protocol import Benchmark, Protocol, mean, share_of_tolerances
from .vsi_bench import CHOICE_SUFFIX, LEAD, NUMBER_SUFFIXES

COUNT_LENGTHS = ("10mins", "30mins", "60mins", "120mins")
RECALL_LENGTHS = (*COUNT_LENGTHS, "240mins")
STREAMING = "_streaming"
STREAMING_LENGTHS = tuple(f"{length}{STREAMING}" for length in COUNT_LENGTHS)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_OPTION = re.compile("[A-D]")


def write_count_prompt(record: Mapping[str, Any]) -> str:
    """Write the text that follows the frames; the same for streaming."""
    return f"{LEAD}{str(record['question']).strip()}\n{NUMBER_SUFFIXES['default']}"


def write_recall_prompt(record: Mapping[str, Any]) -> str:
    """Write the text that follows the frames, without a line that calls them frames."""
    options = "\n".join(map(str, record["options"] or ()))
    return f"{str(record['question']).strip()}\nOptions:\n{options}\n{CHOICE_SUFFIX}"


def _score_number(given: float, truth: float) -> float:
    """Mean relative accuracy, with the error relative to the absolute truth; a truth of 0 needs exactly 0."""
    if truth == 0:
        return float(given == 0)
    return share_of_tolerances(abs(given - truth) / abs(truth))


def score_count(record: Mapping[str, Any], prediction: str) -> float:
    """Score the first number anywhere in an answer.

    - An answer without digits counts as 0: "three" is 0, and right where the truth is 0.
    - Digits end at any other character: "1,200" is 1, "1e3" is 1, ".5" is 5. A hyphen before them is a minus.
    """
    found = _NUMBER.search(prediction)
    return _score_number(float(found.group()) if found else 0.0, float(record["answer"]))


def score_streaming(record: Mapping[str, Any], prediction: str) -> float:
    """Score a JSON list of counts against `answers`, one by one, as far as the shorter list goes.

    - "[3]" scores 1 for [3, 9, 12], because nothing follows it.
    - Items that are no numbers score 0, and so does anything but a list.
    """
    try:
        counts = json.loads(prediction)
    except json.JSONDecodeError:
        return 0.0
    if not isinstance(counts, list):
        return 0.0
    scores = [_score_item(given, truth) for given, truth in zip(counts, record["answers"], strict=False)]
    return mean(scores) if scores else 0.0


def _score_item(given: Any, truth: Any) -> float:
    """The score of an item of a list; texts that Python reads as numbers, `true` and `false` are numbers."""
    try:
        return _score_number(float(given), float(truth))
    except (TypeError, ValueError, OverflowError):
        return 0.0


def find_option(text: str | None) -> str:
    """Return the first of the letters A to D anywhere in a text, as a capital, or "".

    Letters inside words count: "answer: C" is A, and "Based on the video, C" is B.
    """
    found = _OPTION.search(str(text or "").upper())
    return found.group() if found else ""


def score_recall(record: Mapping[str, Any], prediction: str) -> float:
    """Return 1 if the letter of `find_option` is that of `answer`."""
    return float(find_option(prediction) == find_option(record["answer"]))


def average_lengths(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Average the lengths of videos that there are, each of which has a column; see `Protocol`.

    lmms-eval reports each length alone.
    """
    return {"overall": mean(means.values())} | dict(means)


def _headings(lengths: Sequence[str]) -> dict[str, str]:
    return {"overall": "Avg."} | {length: length.removesuffix(STREAMING).replace("mins", " min") for length in lengths}


def _is_streaming(record: Mapping[str, Any]) -> bool:
    return str(record["split"]).endswith(STREAMING)


def _media_paths(record: Mapping[str, Any]) -> Sequence[str]:
    return [record["video_path"]]


COUNT_OFFICIAL = Protocol(
    name="official",
    source="lmms-eval 0.7.3, task vsisuper_count",
    prompt=write_count_prompt,
    score=score_count,
    group_by="split",
    groups=COUNT_LENGTHS,
    truth="answer",
    average=average_lengths,
    columns=_headings(COUNT_LENGTHS),
    max_new_tokens=16,
)
STREAMING_OFFICIAL = replace(
    COUNT_OFFICIAL,
    source="lmms-eval 0.7.3, tasks vsc_streaming: asked once, after the whole video",
    score=score_streaming,
    groups=STREAMING_LENGTHS,
    truth="answers",
    columns=_headings(STREAMING_LENGTHS),
)
RECALL_OFFICIAL = replace(
    COUNT_OFFICIAL,
    source="lmms-eval 0.7.3, task vsisuper_recall",
    prompt=write_recall_prompt,
    score=score_recall,
    group_by="type",
    groups=RECALL_LENGTHS,
    columns=_headings(RECALL_LENGTHS),
)

FILES = ("test-*.parquet", "data/test-*.parquet", "test.jsonl", "*.parquet", "*.jsonl")
VSI_SUPER_COUNT = Benchmark(
    name="vsi-super-count",
    title="VSI-SUPER Count",
    protocols=(COUNT_OFFICIAL,),
    question_files=FILES,
    columns=("video_path", "question", "split", "answer"),
    scene_column="video_path",
    media_paths=_media_paths,
    keep=lambda record: not _is_streaming(record),
    how_to_get="hf download nyu-visionx/VSI-SUPER-Count --repo-type dataset --local-dir ...",
)
VSI_SUPER_COUNT_STREAMING = replace(
    VSI_SUPER_COUNT,
    name="vsi-super-count-streaming",
    title="VSI-SUPER Count, streaming",
    protocols=(STREAMING_OFFICIAL,),
    columns=("video_path", "question", "split", "answers"),
    keep=_is_streaming,
)
VSI_SUPER_RECALL = replace(
    VSI_SUPER_COUNT,
    name="vsi-super-recall",
    title="VSI-SUPER Recall",
    protocols=(RECALL_OFFICIAL,),
    columns=("video_path", "question", "options", "answer", "type"),
    keep=None,
    how_to_get="hf download nyu-visionx/VSI-SUPER-Recall --repo-type dataset --local-dir ...",
)
VSI_SUPER = (VSI_SUPER_COUNT, VSI_SUPER_COUNT_STREAMING, VSI_SUPER_RECALL)
