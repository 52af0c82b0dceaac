"""Whatever runs a model over data: trainers, evaluation, figures."""
