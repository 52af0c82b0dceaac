"""Arguments of a run that teaches: those of `spa3r teach` and of the library."""

from dataclasses import dataclass

from ..runs.scene_views_arguments import SceneViewsArguments
from .command import TeachingOptions


@dataclass
class TeachingArguments(TeachingOptions, SceneViewsArguments):
    """`transformers.TrainingArguments`, with `TeachingOptions` and their checks."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.dense_share <= 1:
            raise ValueError(f"`dense_share` must be above 0 and at most 1, got {self.dense_share}.")
        for entry in self.curriculum:
            step, mark, views = entry.partition(":")
            if not (mark and step.isdigit() and views.isdigit() and views != "1"):
                raise ValueError(
                    f"`curriculum` must hold STEP:VIEWS with at least 2 views, or 0 for all; got `{entry}`."
                )

    def views_at(self, step: int) -> int:
        """Views of a group at a step; 0 for all views of the scene."""
        stages = sorted(tuple(map(int, entry.split(":"))) for entry in self.curriculum)
        return next((views for start, views in reversed(stages) if start <= step), 0)
