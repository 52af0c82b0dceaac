"""Questions about rendered rooms: all types of VSI-Bench, in its words, with answers from the exact geometry.

A question is asked only if its answer is certain:

- each object in it is clearly visible in the given views, and its name fits no other object in the room;
- all counted objects are clearly visible; objects and rooms whose size is asked have all corners within the views;
- distances, angles and first appearances keep a margin from the values at which the answer would change.

The number of a question fixes the answer to look for and its option letter, so that over many rooms all answers and
letters are about equally frequent. A room without such a case gets no question. All questions are a function of the
seed and the room.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from ..benchmarks.vsi_bench import write_prompt
from .ground_truth import RoomGroundTruth, RoomObject, bearing, is_within
from .routes import TURNS, RouteFinder

LETTERS = "ABCD"

# Categories whose number varies from room to room, so that the name does not give away the count.
COUNTED = ("cabinet", "chair", "desk", "door", "lamp", "nightstand", "picture", "window")
# Least and greatest count, in turn; nearly every room has a category with one object, few have one with three or more.
COUNTS = ((1, 1), (2, 2), (3, 9), (3, 9), (3, 9))
# Categories whose largest size is twice the smallest or more.
SIZED = (
    *("ball", "bookshelf", "box", "cabinet", "coffee table", "desk", "lamp", "monitor", "picture", "plant"),
    *("refrigerator", "rug", "sofa", "stool", "table", "trash can", "tv", "window"),
)
# Meters; intervals of the answer, in turn, so that near and far, small and large are about equally frequent.
DISTANCES = ((0.6, 1.2), (1.2, 2.0), (2.0, 3.0), (3.0, np.inf))
LENGTHS = ((0.2, 0.6), (0.6, 1.0), (1.0, 1.6), (1.6, np.inf))
# Meters; by how much the closest object is closer than the next one, and its least distance, to exclude contact.
DISTANCE_MARGIN, MIN_DISTANCE = 0.3, 0.15
# Meters between the centers of any two objects in a question about directions.
MIN_SEPARATION = 0.8
# Intervals of the bearing, in degrees, left positive; each keeps at least 10 degrees from where the answer changes.
DIRECTIONS = {
    "object_rel_direction_easy": {"left": (20, 110), "right": (-110, -20)},
    "object_rel_direction_medium": {"left": (60, 120), "right": (-120, -60), "back": (145, 215)},
    "object_rel_direction_hard": {
        "front-left": (15, 75),
        "front-right": (-75, -15),
        "back-left": (105, 165),
        "back-right": (-165, -105),
    },
}
# The words of VSI-Bench.
WORDS = {
    "object_counting": "How many {}(s) are in this room?",
    "object_abs_distance": (
        "Measuring from the closest point of each object, what is the distance between the {} and the {} (in meters)?"
    ),
    "object_size_estimation": (
        "What is the length of the longest dimension (length, width, or height) of the {}, measured in centimeters?"
    ),
    "room_size_estimation": (
        "What is the size of this room (in square meters)?\n"
        "If multiple rooms are shown, estimate the size of the combined space."
    ),
    "object_rel_distance": (
        "Measuring from the closest point of each object, which of these objects ({}) is the closest to the {}?"
    ),
    "object_rel_direction_easy": (
        "If I am standing by the {0} and facing the {1}, is the {2} to the left or the right of the {1}?"
    ),
    "object_rel_direction_medium": (
        "If I am standing by the {} and facing the {}, is the {} to my left, right, or back?\n"
        "An object is to my back if I would have to turn at least 135 degrees in order to face it."
    ),
    "object_rel_direction_hard": (
        "If I am standing by the {} and facing the {}, is the {} to my front-left, front-right, back-left, or "
        "back-right?\nThe directions refer to the quadrants of a Cartesian plane (if I am standing at the origin and "
        "facing along the positive y-axis)."
    ),
    "route_planning": (
        "You are a robot beginning at the {} and facing the {}. You want to navigate to the {}. You will perform the "
        "following actions (Note: for each [please fill in], choose either 'turn back,' 'turn left,' or 'turn "
        "right.'): {}. You have reached the final destination."
    ),
    "obj_appearance_order": (
        "What will be the first-time appearance order of the following categories in the video: {}?"
    ),
}


@dataclass(frozen=True)
class Question:
    """A question in the words of VSI-Bench.

    Args:
        question_type (`str`): One of `QUESTION_TYPES`.
        question (`str`): The text without prompt and options.
        answer (`str`): An option letter, or a number if there are no options.
        options (`list[str]`, *optional*): Options such as "A. left".
    """

    question_type: str
    question: str
    answer: str
    options: list[str] | None = None

    @property
    def prompt(self) -> str:
        """The official prompt: question, options and answer instruction."""
        return write_prompt(vars(self))


def ask_question(question_type: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    """Ask one question about a room.

    Args:
        question_type (`str`): One of `QUESTION_TYPES`.
        room (`RoomGroundTruth`): The room and the given views.
        number (`int`): Consecutive numbers of a type cycle through all answers and letters.
        rng (`Generator`): Picks one of the cases that have the answer.

    Returns:
        `Question`, *optional*: `None` if the room has no certain case with that answer.
    """
    return QUESTION_TYPES[question_type](question_type, room, number, rng)


def _ask_counting(question_type: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    cases = counted(room, number)
    if not cases:
        return None
    category, count = pick(cases, rng)
    return Question(question_type, WORDS[question_type].format(category), str(count))


def counted(room: RoomGroundTruth, number: int) -> list[tuple[str, int]]:
    """Categories whose objects are all visible and whose count is the one to look for, with the count."""
    least, most = COUNTS[number % len(COUNTS)]
    cases = []
    for category in COUNTED:
        objects = room.of_category(category)
        if least <= len(objects) <= most and room.is_unambiguous(category) and all(map(room.is_visible, objects)):
            cases.append((category, len(objects)))
    return cases


def _ask_distance(question_type: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    found = pick_measured(measured_pairs(room), DISTANCES[number % len(DISTANCES)], rng)
    if found is None:
        return None
    pair, distance = found
    names = [item.category for item in shuffled(pair, rng)]
    return Question(question_type, WORDS[question_type].format(*names), f"{distance:.1f}")


def measured_pairs(room: RoomGroundTruth) -> list[tuple[tuple[RoomObject, RoomObject], float]]:
    """Pairs of objects, each with the distance between their closest points."""
    pairs = itertools.combinations(unique_objects_but_rugs(room), 2)
    return [(pair, room.distance(*pair)) for pair in pairs]


def _ask_size(question_type: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    found = pick_measured(measured_sizes(room), LENGTHS[number % len(LENGTHS)], rng)
    if found is None:
        return None
    item, length = found
    return Question(question_type, WORDS[question_type].format(item.category), str(round(100 * length)))


def measured_sizes(room: RoomGroundTruth) -> list[tuple[RoomObject, float]]:
    """Objects that are fully visible, each with the length of its longest side."""
    objects = [item for item in room.unique_objects if item.category in SIZED and room.is_fully_visible(item)]
    return [(item, item.size.max()) for item in objects]


def _ask_room_size(question_type: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    if not room.is_outline_visible():
        return None
    return Question(question_type, WORDS[question_type], f"{room.description['area']:.1f}")


def _ask_closest(question_type: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    found = find_closest(room, rng)
    if found is None:
        return None
    reference, answer, others = found
    options, letter = _options(answer, others, number)
    listed = ", ".join(option[3:] for option in options)
    return Question(question_type, WORDS[question_type].format(listed, reference), letter, options)


def find_closest(room: RoomGroundTruth, rng: Generator) -> tuple[str, str, list[str]] | None:
    """A reference, an object near it, and three that are farther from it by the margin, by name."""
    objects = unique_objects_but_rugs(room)
    for row in rng.permutation(len(objects)):
        reference = objects[row]
        by_distance = sorted((room.distance(reference, item), item.category) for item in objects)
        others = [pair for pair in by_distance if pair[1] != reference.category and pair[0] >= MIN_DISTANCE]
        # Any object may be the answer if three others are farther by the margin.
        for choice in rng.permutation(len(others)):
            nearest, answer = others[choice]
            farther = [category for distance, category in others if distance >= nearest + DISTANCE_MARGIN]
            if len(farther) >= 3:
                return reference.category, answer, shuffled(farther, rng)[:3]
    return None


def _ask_direction(question_type: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    answers = list(DIRECTIONS[question_type])
    answer = answers[number % len(answers)]
    cases = direction_cases(room, DIRECTIONS[question_type][answer])
    if not cases:
        return None
    names = [item.category for item in pick(cases, rng)]
    others = shuffled([other for other in answers if other != answer], rng)
    options, letter = _options(answer, others, number % len(answers) + number // len(answers))
    return Question(question_type, WORDS[question_type].format(*names), letter, options)


def direction_cases(room: RoomGroundTruth, interval: tuple[float, float]) -> list[tuple[RoomObject, ...]]:
    """Objects to stand by, face and locate, whose bearing lies in the interval from all points of the first one."""
    objects = unique_objects_but_rugs(room)
    if len(objects) < 3:
        return []
    positions = np.stack([item.sample_points for item in objects])  # (objects, 9, 2)
    centers = np.stack([item.center[:2] for item in objects])  # (objects, 2)
    angles = bearing(positions[:, None, None], centers[None, :, None, None], centers[None, None, :, None])
    inside = is_within(angles, interval).all(axis=-1)  # (standing, facing, target)
    apart = np.linalg.norm(centers[:, None] - centers[None], axis=-1) >= MIN_SEPARATION
    # Nobody stands by a vase, but by the table below it.
    grounded = np.array([item.stands_on <= 0 for item in objects])
    cases = inside & apart[:, :, None] & apart[:, None, :] & apart[None] & grounded[:, None, None]
    return [tuple(objects[index] for index in case) for case in np.argwhere(cases)]


def _ask_route(question_type: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    # One question in four asks for one turn, the others for two, so that all outcomes are about equally frequent.
    num_turns = 1 if number % 4 == 0 else 2
    number = number // 4 if num_turns == 1 else number - number // 4 - 1
    outcomes = list(itertools.product(TURNS, repeat=num_turns))
    turns = outcomes[number % len(outcomes)]
    cases = RouteFinder(room).find(turns)
    if not cases:
        return None
    start, *stops = [item.category for item in pick(cases, rng)]
    actions = [f"Go forward until the {stops[0]}"]
    for stop in stops[1:]:
        actions += ["[please fill in]", f"Go forward until the {stop}"]
    listed = " ".join(f"{i}. {action}" for i, action in enumerate(actions, start=1))
    text = WORDS[question_type].format(start, stops[0], stops[-1], listed)
    others = shuffled([", ".join(outcome) for outcome in outcomes if outcome != turns], rng)
    options, letter = _options(", ".join(turns), others[:3], number % len(outcomes) + number // len(outcomes))
    return Question(question_type, text, letter, options)


def _ask_appearance(question_type: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    cases = [
        [category for category, _, _ in chosen]
        for chosen in itertools.combinations(appearances(room), 4)
        if all(clear < following for (_, _, clear), (_, following, _) in itertools.pairwise(chosen))
    ]
    if not cases:
        return None
    order = pick(cases, rng)
    others = [", ".join(other) for other in itertools.permutations(order) if list(other) != order]
    options, letter = _options(", ".join(order), shuffled(others, rng)[:3], number)
    text = WORDS[question_type].format(", ".join(shuffled(order, rng)))
    return Question(question_type, text, letter, options)


def appearances(room: RoomGroundTruth) -> list[tuple[str, int, int]]:
    """Unambiguous categories, each with the first view that shows it at all and the first that shows it clearly."""
    found = []
    for category in sorted({item.category for item in room.objects if room.is_visible(item)}):
        if room.is_unambiguous(category):
            pixels = np.max([item.pixels for item in room.of_category(category)], axis=0)
            found.append((category, int(np.argmax(pixels > 0)), int(np.argmax(pixels >= room.min_visible_pixels))))
    return sorted(found, key=lambda item: (item[2], item[1]))


QUESTION_TYPES = {
    "object_counting": _ask_counting,
    "object_abs_distance": _ask_distance,
    "object_size_estimation": _ask_size,
    "room_size_estimation": _ask_room_size,
    "object_rel_distance": _ask_closest,
    "object_rel_direction_easy": _ask_direction,
    "object_rel_direction_medium": _ask_direction,
    "object_rel_direction_hard": _ask_direction,
    "route_planning": _ask_route,
    "obj_appearance_order": _ask_appearance,
}


def unique_objects_but_rugs(room: RoomGroundTruth) -> list[RoomObject]:
    return [item for item in room.unique_objects if item.category != "rug"]


def _options(answer: str, others: Sequence[str], number: int) -> tuple[list[str], str]:
    """Options with the answer at a place that `number` cycles through, and the answer's letter."""
    place = number % (len(others) + 1)
    contents = [*others[:place], answer, *others[place:]]
    return [f"{letter}. {content}" for letter, content in zip(LETTERS, contents, strict=False)], LETTERS[place]


def pick(cases: Sequence, rng: Generator):
    return cases[int(rng.integers(len(cases)))]


def pick_measured(cases: Sequence[tuple], interval: tuple[float, float], rng: Generator) -> tuple | None:
    """Pick a case whose last entry lies in the interval, if there is one."""
    kept = [case for case in cases if interval[0] <= case[-1] < interval[1]]
    return pick(kept, rng) if kept else None


def shuffled(values: Sequence, rng: Generator) -> list:
    return [values[int(i)] for i in rng.permutation(len(values))]
