"""Scores of baselines that see no image: how much the text of VSI-Bench-style questions gives away."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ..benchmarks.protocol import TOLERANCES
from ..common.videos import spread_evenly
from .question_types import Question
from .training_questions import POSITION_FAMILIES, WORD_FAMILIES, read_position, write_position


def mean_relative_accuracy(predictions: np.ndarray | float, truth: np.ndarray | float) -> np.ndarray:
    """Share of VSI-Bench's ten tolerances that the relative error meets; arguments broadcast, `truth` is positive."""
    error = np.abs(np.asarray(predictions, float) - truth) / truth
    return (np.asarray(error)[..., None] <= TOLERANCES).mean(axis=-1)


def position_accuracy(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Share of VSI-Bench's ten tolerances that the error of a position meets, as a share of the true distance."""
    error = np.linalg.norm(prediction - truth) / np.linalg.norm(truth)
    return float((error <= TOLERANCES).mean())


def frequency_baseline(train: Sequence[Question], test: Sequence[Question]) -> dict[str, float]:
    """Score the most frequent answer of each question type.

    Args:
        train (`Sequence[Question]`): Questions whose answers are counted.
        test (`Sequence[Question]`): Questions to score; types that `train` lacks are left out.

    Returns:
        `dict[str, float]`: Accuracy of choices and words, mean relative accuracy of numbers and positions, in [0, 1].
    """
    counts = defaultdict(Counter)
    for question in train:
        counts[question.question_type][question.answer] += 1
    frequent = {question_type: counter.most_common(1)[0][0] for question_type, counter in counts.items()}
    return _score(test, frequent, lambda question: frequent[question.question_type])


def blind_bound(train: Sequence[Question], test: Sequence[Question]) -> dict[str, float]:
    """Score answers that know all texts of `train` but no image: a lower bound of what the texts give away.

    The answer to a question without options is the one that scores best on the same question in `train`, or else on
    its type: for a number the best constant, for a position the median, for words the most frequent ones. The answer
    to a choice question is the option that was right most often when it was offered, for the same question if `train`
    has it.

    Arguments and result are those of `frequency_baseline`.
    """
    answers, offered, right = defaultdict(list), Counter(), Counter()
    for question in train:
        for key in _keys(question):
            if question.options is None:
                answers[key].append(question.answer)
            else:
                offered.update((key, option[3:]) for option in question.options)
                right.update((key, option[3:]) for option in question.options if option[0] == question.answer)
    best = {key: _best_answer(key[0], given) for key, given in answers.items()}

    def answer(question: Question) -> str:
        narrow, broad = _keys(question)
        if question.options is None:
            return best.get(narrow, best[broad])
        rates = []
        for option in question.options:
            content = option[3:]
            expected = (right[broad, content] + 1) / (offered[broad, content] + len(question.options))
            rates.append((right[narrow, content] + expected) / (offered[narrow, content] + 1))
        return question.options[int(np.argmax(rates))][0]

    return _score(test, {question.question_type for question in train}, answer)


def _keys(question: Question) -> tuple[tuple[str, str], tuple[str, str]]:
    """Two keys of a question: its text without the listed choices, and its type alone."""
    asked = re.sub(r"\([^()]*\)", "", question.question)
    return (question.question_type, asked), (question.question_type, "")


def _best_answer(question_type: str, answers: Sequence[str]) -> str:
    """The one answer that scores best on all questions with these answers."""
    if question_type in WORD_FAMILIES:
        return Counter(answers).most_common(1)[0][0]
    if question_type in POSITION_FAMILIES:
        return write_position(np.median([read_position(answer) for answer in answers], axis=0))
    return str(_best_constant(np.array(answers, float)))


def _best_constant(answers: np.ndarray) -> float:
    candidates = np.unique(answers)
    # If there are many answers, 200 candidates suffice.
    candidates = candidates[spread_evenly(len(candidates), 200)]
    scores = [float(mean_relative_accuracy(candidate, answers).mean()) for candidate in candidates]
    return float(candidates[int(np.argmax(scores))])


def _score(test: Sequence[Question], known: Iterable[str], answer: Callable[[Question], str]) -> dict[str, float]:
    scores = defaultdict(list)
    for question in test:
        if question.question_type in known:
            scores[question.question_type].append(_score_answer(question, answer(question)))
    return {question_type: float(np.mean(values)) for question_type, values in scores.items()}


def _score_answer(question: Question, given: str) -> float:
    if question.question_type in POSITION_FAMILIES:
        return position_accuracy(read_position(given), read_position(question.answer))
    if question.options is not None or question.question_type in WORD_FAMILIES:
        return float(given == question.answer)
    return float(mean_relative_accuracy(float(given), float(question.answer)))
