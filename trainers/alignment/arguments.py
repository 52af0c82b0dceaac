"""Arguments of an alignment: those of `spa3r align` and of the library, from the command line and a recipe."""

import sys
from dataclasses import dataclass

from ..runs.recipes import parse_options
from ..runs.scene_views_arguments import SceneViewsArguments
from .command import AlignmentArguments, AlignmentOptions


@dataclass
class AlignmentTrainingArguments(AlignmentOptions, SceneViewsArguments):
    """`transformers.TrainingArguments`, with `AlignmentOptions` and their checks."""

    def __post_init__(self):
        super().__post_init__()
        if self.distinct_passes < 0:
            raise ValueError(f"`distinct_passes` must not be negative, got {self.distinct_passes}; 0 keeps nothing.")


def parse_arguments(
    arguments: list[str] | None = None,
) -> tuple[AlignmentArguments, AlignmentTrainingArguments]:
    """Read the command line, over the recipe that it names, over the defaults.

    Raises:
        ValueError: If there is no such recipe, or a key or an option is unknown.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    dataclasses = (AlignmentArguments, AlignmentTrainingArguments)
    return tuple(parse_options("align", arguments, dataclasses)[0])
