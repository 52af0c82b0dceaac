"""What is asked about rendered rooms: the options of `spa3r room-questions`, checked against one another."""

from dataclasses import asdict, dataclass

from .ground_truth import MIN_VISIBLE_SHARE
from .question_types import QUESTION_TYPES
from .training_questions import IMAGE_FAMILIES, LIST_FAMILIES, PLACE_FAMILIES, TRAINING_FAMILIES

FORMATS = ("train", "benchmark")
FAMILIES = QUESTION_TYPES | TRAINING_FAMILIES
# Names of several families. Lists, whose answers are twenty times longer, are asked for by their own names.
GROUPS = {
    "benchmark": tuple(QUESTION_TYPES),
    "3d": tuple(name for name in PLACE_FAMILIES if name not in LIST_FAMILIES),
    "2d": tuple(name for name in IMAGE_FAMILIES if name not in LIST_FAMILIES),
}


@dataclass(frozen=True)
class QuestionOptions:
    """What is asked about each room.

    Args:
        format (`str`): `"train"` or `"benchmark"`.
        seed (`int`): Seed of the questions.
        questions_per_room (`int`):
            Number of questions about a room, at most; the families take turns. A room without a certain case gets
            fewer.
        families (`tuple[str, ...]`):
            What is asked: names of `FAMILIES` or `GROUPS`. A benchmark asks only the types of VSI-Bench.
        views_per_question (`int`, *optional*):
            Number of evenly spaced views that a training question shows. With 1, the records of a room show one view
            after another, in random order. Default: 1 for the families of "2d", `training_views` for all others.
        turns (`int`): Number of questions about the same views in a training record, at most.
        lettered_share (`float`):
            Share of the short questions that are asked with lettered options, where a few answers are possible.
        min_visible_share (`float`): A view clearly shows an object that covers at least this share of its pixels.

    Raises:
        ValueError: If an option is out of range, or does not go with another.
    """

    format: str = "train"
    seed: int = 0
    questions_per_room: int = 10
    families: tuple[str, ...] = ("benchmark",)
    views_per_question: int | None = None
    turns: int = 1
    lettered_share: float = 0.0
    min_visible_share: float = MIN_VISIBLE_SHARE

    def __post_init__(self):
        for name in ("questions_per_room", "turns", "views_per_question"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}; ask for more.")
        if self.seed < 0:
            raise ValueError(f"`seed` must not be negative, got {self.seed}; choose another seed.")
        if self.format not in FORMATS:
            raise ValueError(
                f"`format` must be one of {', '.join(FORMATS)}, got `{self.format}`; choose one of these."
            )
        if not 0 < self.min_visible_share < 1:
            raise ValueError(
                f"`min_visible_share` must be between 0 and 1, got {self.min_visible_share}; give a share."
            )
        if not 0 <= self.lettered_share <= 1:
            raise ValueError(f"`lettered_share` must be from 0 to 1, got {self.lettered_share}; give a share.")
        self._check_families()
        self._check_format()

    def _check_families(self) -> None:
        if not self.families:
            raise ValueError(f"`families` must name what to ask, got none; choose from {', '.join(GROUPS)}.")
        for name in self.families:
            if name not in GROUPS and name not in FAMILIES:
                raise ValueError(
                    f"`families` must be among {', '.join([*GROUPS, *FAMILIES])}, got `{name}`; choose from these."
                )
        about_images = [name for name in self.names if name in IMAGE_FAMILIES]
        others = [name for name in self.names if name not in IMAGE_FAMILIES]
        if about_images and self.views_per_question != 1 and (others or self.views_per_question is not None):
            raise ValueError(
                f"`{about_images[0]}` asks about a single image, got `views_per_question` {self.views_per_question}"
                f"{f' and `{others[0]}` beside it' if others else ''}; set `views_per_question` to 1, or write these "
                "families apart."
            )

    def _check_format(self) -> None:
        if self.format == "train":
            return
        for name in self.names:
            if name in TRAINING_FAMILIES:
                raise ValueError(
                    f"`{name}` is only for training, got `format` benchmark; leave it out of `families`, or set "
                    "`format` to train."
                )
        for name, default in (("views_per_question", None), ("turns", 1), ("lettered_share", 0.0)):
            if (value := getattr(self, name)) != default:
                raise ValueError(
                    f"`{name}` is only for training, got {value} with `format` benchmark, whose questions are about "
                    "all views, one at a time; leave it out."
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the families, each once, in the order in which they take turns."""
        return tuple(dict.fromkeys(part for name in self.families for part in GROUPS.get(name, (name,))))

    @property
    def num_views(self) -> int | None:
        """Number of views of a training question; `None` stands for `training_views`."""
        return 1 if self.names[0] in IMAGE_FAMILIES else self.views_per_question

    def as_json(self) -> dict:
        """The options as they are stored; those with their default values are left out, as in earlier sets."""
        stored = {"format": self.format, "seed": self.seed, "questions_per_room": self.questions_per_room}
        rest = {name: value for name, value in asdict(self).items() if name not in stored}
        rest["families"] = list(self.names)
        defaults = asdict(QuestionOptions()) | {"families": list(QUESTION_TYPES)}
        return stored | {name: value for name, value in rest.items() if value != defaults[name]}
