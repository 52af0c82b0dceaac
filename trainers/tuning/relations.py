"""What the text of a question must tell besides its answer: how its objects lie to each other, which option is right.

The letter of an answer hardly rewards a small language model for the steps that lead to it: where each object is, how
it lies to the others, which option says so. Here each step is a target of its own, at the token that completes it.
"""

import math
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

# Further objects of a question are left out; those of the benchmark name five at most.
MAX_NAMES = 6
# From each earlier object, and to the right of and along the line from the first to the second.
NUM_VALUES = 3 * MAX_NAMES + 2
# The place of each object, and the values of the last.
NUM_GATHERED = 3 * MAX_NAMES + NUM_VALUES
UNKNOWN = float("nan")

Place = Sequence[float] | None
OPTION = re.compile(r"\n([A-Z])\. ([^\n]+)")
ANSWER = re.compile(r"\s*([A-Z])\b(?!')")


class Mention(NamedTuple):
    """
    A name in a question.

    column (`int`):
        Of its last token.
    question (`int`):
        Which question of the record it stands in, from 0.
    name (`str`):
        Of the object.
    place (`Sequence[float]`, *optional*):
        Its center, in meters in the first view's frame; `None` if unknown.
    """

    column: int
    question: int
    name: str
    place: Place


def questions_of(is_answer: Sequence[bool]) -> list[int]:
    """For each token the question to which it belongs, from 0; -1 within an answer."""
    question, questions = 0, []
    for index, answers in enumerate(is_answer):
        question += index > 0 and is_answer[index - 1] and not answers
        questions.append(-1 if answers else question)
    return questions


def relations(mentions: Sequence[Mention]) -> Iterator[tuple[int, list[float]]]:
    """What each mention after the first object of its question must tell.

    Args:
        mentions (`Sequence[Mention]`): Of a record, in the order of the text.

    Yields:
        The column, and `NUM_VALUES` numbers in meters, NaN where unknown: the way to it from the first object of the
        question, from the second, and so on; then how far it lies to the right of someone who stands at the first
        object and faces the second, and how far ahead.
    """
    places: dict[str, Place] = {}
    question = None
    for mention in mentions:
        if mention.question != question:
            question, places = mention.question, {}
        if len(places) < MAX_NAMES:
            places.setdefault(mention.name, mention.place)
        if len(places) > 1:
            yield mention.column, _lies(mention, places)


def gathered(mentions: Sequence[Mention]) -> Iterator[tuple[int, list[float]]]:
    """What the token before each answer must tell.

    Args:
        mentions (`Sequence[Mention]`): Of a record, in the order of the text.

    Yields:
        The question, if it names any object, and `NUM_GATHERED` numbers in meters, NaN where unknown: the places of
        its objects in the order of their names, then how the last lies to the others, as in `relations`.
    """
    for question, group in groupby(mentions, key=lambda mention: mention.question):
        places: dict[str, Place] = {}
        for mention in group:
            if len(places) < MAX_NAMES:
                places.setdefault(mention.name, mention.place)
        values = [number for place in places.values() for number in place or [UNKNOWN] * 3]
        values += [UNKNOWN] * (3 * MAX_NAMES - len(values))
        last = list(places)[-1]
        yield question, values + _lies(Mention(0, question, last, places[last]), places)


def _lies(mention: Mention, places: dict[str, Place]) -> list[float]:
    values = [UNKNOWN] * NUM_VALUES
    if mention.place is None or len(places) == 1:
        return values
    for index, (name, place) in enumerate(places.items()):
        if place is not None and name != mention.name:
            values[3 * index : 3 * index + 3] = [to - start for to, start in zip(mention.place, place, strict=True)]
    first, second = list(places)[:2]
    if mention.name not in (first, second) and places[first] is not None and places[second] is not None:
        values[-2:] = _seen_from(places[first], places[second], mention.place)
    return values


def _seen_from(start: Sequence[float], facing: Sequence[float], place: Sequence[float]) -> list[float]:
    """How far to the right and how far ahead a place lies; the floor is that of a first view held level."""
    right, ahead = facing[0] - start[0], facing[2] - start[2]
    length = math.hypot(right, ahead)
    if length == 0:
        return [UNKNOWN, UNKNOWN]
    right, ahead = right / length, ahead / length
    x, z = place[0] - start[0], place[2] - start[2]
    return [ahead * x - right * z, right * x + ahead * z]


class OptionFinder:
    """Finds where the options of questions end, and which are right.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def __call__(self, input_ids: Tensor, is_answer: Sequence[bool]) -> Iterator[tuple[int, bool]]:
        """Find the options of a record that are answered by a letter, such as `B. right` in a line of its own.

        Args:
            input_ids (`torch.LongTensor` of shape `(sequence_length,)`): Its text.
            is_answer (`Sequence[bool]`): Whether each token is part of an answer.

        Yields:
            The column of the last token of an option, and whether the answer is its letter.
        """
        pieces = list(map(self._piece, input_ids.tolist()))
        start = 0
        for begin, end in answer_spans(is_answer):
            answer = ANSWER.match("".join(pieces[begin:end]))
            if answer:
                yield from _options(pieces, start, begin, answer[1])
            start = end

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self.tokenizer.decode([token])
        return self._pieces[token]


def _options(pieces: list[str], start: int, end: int, letter: str) -> Iterator[tuple[int, bool]]:
    ends = torch.tensor([len(piece) for piece in pieces[start:end]]).cumsum(0)
    for option in OPTION.finditer("".join(pieces[start:end])):
        column = start + int((ends >= option.end()).nonzero()[0])
        yield column, option[1] == letter


def answer_spans(is_answer: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """First column of each answer, and the column after its last."""
    begin = None
    for column, answers in enumerate([*is_answer, False]):
        if answers and begin is None:
            begin = column
        elif not answers and begin is not None:
            yield begin, column
            begin = None
