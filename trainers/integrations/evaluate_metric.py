"""The scorers as a module of Hugging Face's `evaluate`. It needs spa3r installed, but no network.

    import evaluate

    metric = evaluate.load("trainers/integrations/evaluate_metric.py", "vsi-bench")
    metric.compute(predictions=["A"], references=[{"question_type": "route_planning", "ground_truth": "A"}])

A configuration is a benchmark, or a benchmark and one of its protocols: `vsi-bench/lmms-eval-2026`. References are
records of the benchmark; only the group and the right answer are used.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate

# Absolute, because `evaluate` copies this file out of the package.
from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.protocol import summarize_answers

DESCRIPTION = "Scores of answers to questions about space, as {source} scores {benchmark}."
INPUTS = """
Args:
    predictions (list of `str`): The answers, unchanged.
    references (list of `dict`): The record of each question, with the fields {fields}.

Returns:
    `dict`: {columns}; fractions.
"""


class SpatialBenchmarks(evaluate.Metric):
    """Scores of one benchmark under one of its protocols."""

    def _info(self) -> evaluate.MetricInfo:
        name, _, protocol = self.config_name.partition("/")
        if name not in BENCHMARKS:
            raise ValueError(f"Unknown benchmark `{name}`; choose one of {', '.join(BENCHMARKS)}.")
        self.protocol = BENCHMARKS[name].protocol(protocol or None)
        self.fields = (self.protocol.group_by, self.protocol.truth)
        text = datasets.Value("string")
        # Streaming questions have a list of right counts.
        truth = datasets.List(datasets.Value("float64")) if self.protocol.truth == "answers" else text
        return evaluate.MetricInfo(
            description=DESCRIPTION.format(benchmark=name, source=self.protocol.source),
            citation="",
            inputs_description=INPUTS.format(
                fields=" and ".join(self.fields), columns=", ".join(self.protocol.columns)
            ),
            features=datasets.Features(
                {"predictions": text, "references": {self.protocol.group_by: text, self.protocol.truth: truth}}
            ),
        )

    def add_batch(self, *, predictions: Sequence[str], references: Sequence[Mapping[str, Any]], **kwargs):
        """Add answers and the records of their questions; see `inputs_description`.

        Raises:
            ValueError: If there are none, their numbers differ, or a record lacks a field.
        """
        for name, values in (("predictions", predictions), ("references", references)):
            if not len(values):
                raise ValueError(f"`{name}` is empty; give the answers, and one record for each.")
        references = [self._select(record) for record in references]
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction: str, reference: Mapping[str, Any], **kwargs):
        """Add an answer and the record of its question."""
        super().add(prediction=prediction, reference=self._select(reference), **kwargs)

    def _select(self, record: Mapping[str, Any]) -> dict[str, Any]:
        if missing := [field for field in self.fields if field not in record]:
            raise ValueError(f"A reference has {sorted(record)}, but lacks {missing}; add it.")
        return {field: record[field] for field in self.fields}

    def _compute(self, predictions: list[str], references: list[dict[str, str]]) -> dict[str, float]:
        return summarize_answers(self.protocol, references, predictions)
