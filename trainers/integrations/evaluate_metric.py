"""The scorers as a module of Hugging Face's `evaluate`; it needs spa3r installed, and nothing from the network.

    import evaluate

    metric = evaluate.load("trainers/metrics/spa3r_benchmarks.py", "vsi-bench")
    metric.compute(predictions=["A"], references=[{"question_type": "route_planning", "ground_truth": "A"}])

A configuration is a benchmark, or a benchmark and a protocol of it: `vsi-bench/lmms-eval-2026`. References are records
of the benchmark, of which each configuration names the fields that it scores by.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.protocol import summarize_answers

# What answers are scored by and averaged with.
FIELDS = {
    "vsi-bench": ("question_type", "ground_truth"),
    "cv-bench": ("source", "answer"),
    "spar-bench": ("task", "answer"),
    "viewspatial-bench": ("question_type", "answer"),
    "rooms": ("question_type", "ground_truth"),
}
DESCRIPTION = "Scores of answers to questions on space, as the official code of {benchmark} ({source}) gives them."
INPUTS = """
Args:
    predictions (list of `str`): The answers, as the model wrote them.
    references (list of `dict`): Of the record of each question the fields {fields}.

Returns:
    `dict`: {columns}, as fractions.
"""


class SpatialBenchmarks(evaluate.Metric):
    """Scores of one benchmark under one of its protocols."""

    def _info(self) -> evaluate.MetricInfo:
        self.benchmark, _, protocol = self.config_name.partition("/")
        protocols = BENCHMARKS.get(self.benchmark, {})
        self.protocol = protocols.get(protocol) if protocol else next(iter(protocols.values()), None)
        if self.protocol is None:
            known = [f"{benchmark}/{name}" for benchmark, names in BENCHMARKS.items() for name in names]
            raise ValueError(f"The configuration `{self.config_name}` is not known; known are {', '.join(known)}.")
        fields = FIELDS[self.benchmark]
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION.format(benchmark=self.benchmark, source=self.protocol.source),
            citation="",
            inputs_description=INPUTS.format(fields=", ".join(fields), columns=", ".join(self.protocol.columns)),
            features=datasets.Features({"predictions": text, "references": dict.fromkeys(fields, text)}),
        )

    def add_batch(self, *, predictions: Sequence[str], references: Sequence[Mapping[str, Any]], **kwargs):
        """Take answers and the records of their questions, as `compute` does; see `inputs_description`.

        Raises:
            ValueError: If there are none, not as many of both, or a record lacks a field.
        """
        for name, values in (("predictions", predictions), ("references", references)):
            if not len(values):
                raise ValueError(f"`{name}` is empty; give the answers and as many records of their questions.")
        references = [self._select(record) for record in references]
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction: str, reference: Mapping[str, Any], **kwargs):
        """Take one answer and the record of its question; see `add_batch`."""
        super().add(prediction=prediction, reference=self._select(reference), **kwargs)

    def _select(self, record: Mapping[str, Any]) -> dict[str, Any]:
        fields = FIELDS[self.benchmark]
        if missing := [field for field in fields if field not in record]:
            raise ValueError(f"A reference lacks {missing}: {self.benchmark} scores by {', '.join(fields)}.")
        return {field: record[field] for field in fields}

    def _compute(self, predictions: list[str], references: list[dict[str, str]]) -> dict[str, float]:
        return summarize_answers(self.protocol, references, predictions)
