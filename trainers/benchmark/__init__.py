"""Run a benchmark: ask a model, score its answers, report."""
