"""Rewards of answers about space: the scorers of VSI-Bench, and the form of an answer.

Each is a reward function of TRL's trainers. It gets the columns of `load_questions`, and returns `None` for answers
that it does not score.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...data_scripts.benchmarks.protocol import Protocol, score_answer, to_number
from .questions import CHOICE

Reward = Callable[..., list[float | None]]


def make_rewards(protocol: Protocol, type_weights: Mapping[str, float]) -> list[Reward]:
    """Accuracy of choices, mean relative accuracy of numbers, and form.

    Args:
        protocol (`Protocol`): Of VSI-Bench; scores the answers.
        type_weights (`dict[str, float]`): Factor of the rewards of a question type, 1 for those left out.

    Returns:
        `list[Callable]`: `accuracy` is 1 for the right letter and 0 else. `mean_relative_accuracy` is a dense reward:
        the share of ten tolerances that a number keeps. `answer_format` is 1 for an answer that is a letter of the
        options or a number, and nothing else. The first two log the mean score of each question type.
    """

    def score(completions, ground_truth, question_type, scored_as, log_metric, chosen: bool) -> list[float | None]:
        rewards: list[float | None] = []
        for completion, truth, kind, how in zip(completions, ground_truth, question_type, scored_as, strict=True):
            if (how == CHOICE) != chosen:
                rewards.append(None)
                continue
            value = score_answer(protocol, {"question_type": how, "ground_truth": truth}, answer_of(completion))
            log_metric(f"scores/{kind}", value)
            rewards.append(value * type_weights.get(kind, 1.0))
        return rewards

    def accuracy(completions, ground_truth, question_type, scored_as, log_metric, **_) -> list[float | None]:
        return score(completions, ground_truth, question_type, scored_as, log_metric, chosen=True)

    def mean_relative_accuracy(completions, ground_truth, question_type, scored_as, log_metric, **_):
        return score(completions, ground_truth, question_type, scored_as, log_metric, chosen=False)

    def answer_format(completions, options, question_type, **_) -> list[float | None]:
        texts = [answer_of(completion).strip() for completion in completions]
        return [
            has_asked_form(text, choices) * type_weights.get(kind, 1.0)
            for text, choices, kind in zip(texts, options, question_type, strict=True)
        ]

    return [accuracy, mean_relative_accuracy, answer_format]


def answer_of(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a completion: of a conversation, or as it is."""
    return completion if isinstance(completion, str) else completion[0]["content"]


def has_asked_form(answer: str, options: Sequence[str]) -> bool:
    """Whether an answer is a letter of the options or, without options, a number, and nothing else."""
    if options:
        return answer.lower() in {option.partition(".")[0].strip().lower() for option in options}
    return to_number(answer) is not None
