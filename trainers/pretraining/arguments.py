"""Arguments of a pre-training run: those of `spa3r pretrain` and of the library, from command line and recipe."""

import sys
from dataclasses import dataclass

from ..runs.recipes import merge, parse_options, parse_overrides
from ..runs.scene_views_arguments import SceneViewsArguments
from .command import DataArguments, ModelArguments, PretrainingOptions


@dataclass
class Spa3RTrainingArguments(PretrainingOptions, SceneViewsArguments):
    """`transformers.TrainingArguments`, with `PretrainingOptions` and their checks."""

    def __post_init__(self):
        if self.load_best_model_at_end and self.metric_for_best_model in (None, "loss", "eval_loss"):
            raise ValueError(
                f"`load_best_model_at_end` needs a metric of the evaluation, got {self.metric_for_best_model}: set "
                "`metric_for_best_model: geometry_cosine_own` and `greater_is_better: true`."
            )
        super().__post_init__()
        if self.bf16_teachers and not self.bf16:
            raise ValueError("`bf16_teachers` needs training in bfloat16, got `bf16` false: set `bf16: true`.")


def parse_arguments(
    arguments: list[str] | None = None,
) -> tuple[ModelArguments, DataArguments, Spa3RTrainingArguments]:
    """Read the command line, over the recipe that it names, over the defaults.

    The overrides of the architecture come back as one mapping: those of the recipe, with those of the command line
    merged over them.

    Raises:
        ValueError: If there is no such recipe, a key or an option is unknown, or an override cannot be read.
    """
    (model_args, data_args, training_args), recipe = parse_options(
        "pretrain",
        sys.argv[1:] if arguments is None else arguments,
        (ModelArguments, DataArguments, Spa3RTrainingArguments),
    )
    model_args.overrides = merge(recipe.get("overrides", {}), parse_overrides(model_args.overrides))
    return model_args, data_args, training_args
