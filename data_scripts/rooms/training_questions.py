"""Short questions about rendered rooms that teach where things are. They are for training only.

Families of `PLACE_FAMILIES` ("3d") ask about all given views, those of `IMAGE_FAMILIES` ("2d") about a single one. As
in `question_types`, a question is asked only if its answer is certain. The number of a question fixes the answer to
look for; where the answers are names, each name that a room offers is equally likely.

Positions are those of an object's center, in meters, in the frame of the first view's camera, in a form with always
the same number of digits: "right 1.2, down 0.3, ahead 2.8". Views are numbered from 1 in the order shown.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from ..benchmarks.vsi_bench import CHOICE_SUFFIX
from .ground_truth import CONFUSABLE, RoomGroundTruth, RoomObject
from .materials import COLORS
from .question_types import (
    COUNTED,
    DIRECTIONS,
    DISTANCE_MARGIN,
    DISTANCES,
    LENGTHS,
    LETTERS,
    MIN_DISTANCE,
    MIN_SEPARATION,
    Question,
    appearances,
    counted,
    direction_cases,
    find_closest,
    measured_pairs,
    measured_sizes,
    pick,
    pick_measured,
    shuffled,
    unique_objects_but_rugs,
)

WORDS = {
    "grounding": "Where is the {} from view 1 (right, down, ahead in meters)?",
    "object_at": "What is at {} from view 1?",
    "relative_position": "At the {} facing the {}, where is the {} (right, ahead in meters)?",
    "camera_distance": "How many meters is the {} from view 1?",
    "pair_distance": "How many meters are between the {} and the {}?",
    "direction": "At the {} facing the {}, is the {} {}?",
    "nearest_object": "What is nearest to the {}?",
    "nearest_of": "Which is nearest to the {}, the {}?",
    "object_length": "How many centimeters is the longest side of the {}?",
    "object_count": "How many {}(s) are in the room?",
    "room_area": "How many square meters is the floor?",
    "longest_wall": "How many meters is the longest wall?",
    "visible_views": "Which views show the {}?",
    "first_view": "Which view is the first to show the {}?",
    "seen_first": "Which is seen first, the {}?",
    "room_objects": "Which objects are first shown in which view, and where (right, ahead in meters)?",
    "color": "What color is the {}?",
    "image_side": "Is the {} in the left or the right half of the image?",
    "image_position": "Where in the image is the {}?",
    "presence": "Is there any {} in the image?",
    "view_count": "How many {}(s) are in the image?",
    "largest_object": "What is the largest object in the image?",
    "closer": "Which is closer to the camera, the {}?",
    "image_objects": "Which objects are in the image, and where?",
}
# The words of a position: those of positive and of negative numbers, along each axis.
AXES = {"right": "left", "down": "up", "ahead": "behind"}
# Meters; coordinates have one digit before the point.
MAX_COORDINATE = 9.95
# Meters; least distance from a position to the centers of the objects that are not there.
MIN_CENTER_DISTANCE = 0.8
# Meters; by how much the nearest object is nearer than any of another category.
NEAREST_MARGIN = 0.2
# Least and greatest number of objects in an image, in turn; few images show two of a kind.
IMAGE_COUNTS = ((1, 1), *[(2, np.inf)] * 4)
# Least and greatest number of views that show an object, in turn.
VIEW_COUNTS = ((1, 1), (2, 2), (3, 4), (5, np.inf))
# Categories that have one color, which is not that of a wood only.
COLORED = ("armchair", "ball", "bed", "chair", "door", "refrigerator", "rug", "sofa", "stove", "trash can")
# Share of the image's width or height between the center of an object and the line where the answer changes.
IMAGE_MARGIN = 0.06
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
# The largest object covers at least this share of the image, and so many times the pixels of the next one.
MIN_LARGEST_SHARE, LARGEST_RATIO = 0.04, 1.5


# All possible answers, of families that have few whatever the question names.
ALTERNATIVES = {
    "color": tuple(COLORS),
    "image_side": COLUMNS[::2],
    "image_position": tuple(f"{row} {column}" for row in ROWS for column in COLUMNS),
    "presence": ("yes", "no"),
}


@dataclass(frozen=True)
class ShortQuestion(Question):
    """A question without a prompt around it, and without options.

    Args:
        alternatives (`tuple[str, ...]`): What the answer is among, if that is known.
    """

    alternatives: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        return self.question


def with_options(question: Question, rng: Generator) -> Question:
    """The same question with lettered options, in the form of VSI-Bench, where the alternatives are known."""
    if not getattr(question, "alternatives", ()):
        return question
    others = [each for each in question.alternatives if each != question.answer]
    options = [question.answer, *rng.permutation(others)[: len(LETTERS) - 1]]
    options = rng.permutation(options).tolist()
    lines = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    text = f"{question.question}\nOptions:\n{lines}\n{CHOICE_SUFFIX}"
    return ShortQuestion(question.question_type, text, LETTERS[options.index(question.answer)])


def _ask(family: str, names: Sequence[str], answer: str, alternatives: Sequence[str] = ()) -> ShortQuestion:
    alternatives = tuple(alternatives) or ALTERNATIVES.get(family, ())
    return ShortQuestion(family, WORDS[family].format(*names), answer, alternatives=alternatives)


def write_position(coordinates: Sequence[float]) -> str:
    """Write two numbers (right, ahead) or three (right, down, ahead), in meters, as words and digits."""
    words = AXES.items() if len(coordinates) == 3 else [("right", "left"), ("ahead", "behind")]
    rounded = np.round(coordinates, 1)
    pairs = zip(words, rounded, strict=True)
    return ", ".join(f"{there if value >= 0 else back} {abs(value):.1f}" for (there, back), value in pairs)


def read_position(text: str) -> np.ndarray:
    """Read the numbers that `write_position` wrote, in their order."""
    parts = [part.split() for part in text.split(", ")]
    return np.array([float(number) * (1 if word in AXES else -1) for word, number in parts])


def _ask_grounding(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    cases = []
    for item in room.unique_objects:
        position = room.in_cameras(item.center[None])[0, 0]
        quadrant = (int(position[0] < 0), int(position[2] < 0))
        if np.abs(position).max() < MAX_COORDINATE and quadrant == (number % 2, number // 2 % 2):
            cases.append((item.category, position))
    if not cases:
        return None
    category, position = pick(cases, rng)
    return _ask(family, [category], write_position(position))


def _ask_object_at(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    cases = []
    for item in room.unique_objects:
        position = room.in_cameras(item.center[None])[0, 0]
        apart = [np.linalg.norm(other.center - item.center) for other in room.objects if other is not item]
        if np.abs(position).max() < MAX_COORDINATE and min(apart) >= MIN_CENTER_DISTANCE:
            cases.append((write_position(position), item.category))
    return _ask_for_name(family, cases, rng)


def _ask_relative_position(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    objects = unique_objects_but_rugs(room)
    if len(objects) < 3:
        return None
    centers = np.stack([item.center[:2] for item in objects])
    grounded = np.array([item.stands_on <= 0 for item in objects])
    offsets = centers[None] - centers[:, None]  # (standing, other, 2)
    distances = np.linalg.norm(offsets, axis=-1)
    ahead = offsets / np.maximum(distances, 1e-9)[..., None]
    right = np.stack([ahead[..., 1], -ahead[..., 0]], axis=-1)
    # (standing, facing, target, 2)
    positions = np.stack([(offsets[:, None] * axis[:, :, None]).sum(axis=-1) for axis in (right, ahead)], axis=-1)
    is_apart = distances >= MIN_SEPARATION
    cases = is_apart[:, :, None] & is_apart[:, None] & is_apart[None] & grounded[:, None, None]
    cases &= ((positions < 0) == [number % 2 == 1, number // 2 % 2 == 1]).all(axis=-1)
    cases &= np.abs(positions).max(axis=-1) < MAX_COORDINATE
    found = np.argwhere(cases)
    if not len(found):
        return None
    case = tuple(pick(found, rng))
    return _ask(family, [objects[index].category for index in case], write_position(positions[case]))


def _ask_camera_distance(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    measured = [(item, np.linalg.norm(item.center - room.poses[0, :3, 3])) for item in room.unique_objects]
    found = pick_measured(measured, DISTANCES[number % len(DISTANCES)], rng)
    return found and _ask(family, [found[0].category], f"{found[1]:.1f}")


def _ask_pair_distance(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    found = pick_measured(measured_pairs(room), DISTANCES[number % len(DISTANCES)], rng)
    return found and _ask(family, [item.category for item in shuffled(found[0], rng)], f"{found[1]:.1f}")


def _ask_direction(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    intervals = list(DIRECTIONS.values())[number % len(DIRECTIONS)]
    answers = list(intervals)
    answer = answers[number // len(DIRECTIONS) % len(answers)]
    cases = direction_cases(room, intervals[answer])
    if not cases:
        return None
    names = [item.category for item in pick(cases, rng)]
    return _ask(family, [*names, _either(answers)], answer, answers)


def _ask_nearest_object(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    others = [item for item in room.objects if item.category != "rug"]
    cases = []
    for reference in unique_objects_but_rugs(room):
        measured = sorted(
            ((room.distance(reference, item), item) for item in others if item is not reference),
            key=lambda pair: pair[0],
        )
        (nearest, found), *farther = measured
        next_distance = min((distance for distance, item in farther if item.category != found.category), default=0)
        is_certain = room.is_visible(found) and room.is_unambiguous(found.category)
        if is_certain and nearest >= MIN_DISTANCE and next_distance >= nearest + NEAREST_MARGIN:
            cases.append((reference.category, found.category))
    return _ask_for_name(family, cases, rng)


def _ask_nearest_of(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    found = find_closest(room, rng)
    if found is None:
        return None
    reference, answer, others = found
    place = number % (len(others) + 1)
    names = [*others[:place], answer, *others[place:]]
    return _ask(family, [reference, _either(names, " the")], answer, names)


def _ask_object_length(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    found = pick_measured(measured_sizes(room), LENGTHS[number % len(LENGTHS)], rng)
    return found and _ask(family, [found[0].category], str(round(100 * found[1])))


def _ask_object_count(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    cases = counted(room, number)
    if not cases:
        return None
    category, count = pick(cases, rng)
    return _ask(family, [category], str(count))


def _ask_room_area(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    return _ask(family, [], f"{room.description['area']:.1f}") if room.is_outline_visible() else None


def _ask_longest_wall(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    if not room.is_outline_visible():
        return None
    walls = np.roll(room.outline, -1, axis=0) - room.outline
    return _ask(family, [], f"{np.linalg.norm(walls, axis=1).max():.1f}")


def _clear_views(room: RoomGroundTruth, item: RoomObject) -> list[int] | None:
    """Numbers of the views that show an object, if each shows it clearly or not at all."""
    clear = item.pixels >= room.min_visible_pixels
    return None if (clear != (item.pixels > 0)).any() else [int(view) + 1 for view in np.flatnonzero(clear)]


def _ask_visible_views(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    least, most = VIEW_COUNTS[number % len(VIEW_COUNTS)]
    cases = []
    for item in room.unique_objects if len(room.views) > 1 else ():
        views = _clear_views(room, item)
        if views is not None and least <= len(views) <= most:
            cases.append((item.category, ", ".join(map(str, views))))
    return _ask(family, *_split(pick(cases, rng))) if cases else None


def _ask_first_view(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    if len(room.views) == 1:
        return None
    wanted = number % len(room.views)
    cases = [name for name, first_trace, first in appearances(room) if first_trace == first == wanted]
    return _ask(family, [pick(cases, rng)], str(wanted + 1)) if cases else None


def _ask_seen_first(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    pairs = itertools.permutations(appearances(room), 2)
    cases = [(earlier[0], later[0]) for earlier, later in pairs if earlier[2] < later[1]]
    if not cases:
        return None
    names = pick(cases, rng)
    return _ask(family, [_either(names if number % 2 == 0 else names[::-1], " the")], names[0], names)


def _ask_room_objects(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    """List all objects by the first view that shows them clearly, and from left to right."""
    if len(room.views) == 1:
        return None
    found = []
    for item in filter(room.is_visible, room.objects):
        right, _, ahead = room.in_cameras(item.center[None])[0, 0]
        if max(abs(right), abs(ahead)) >= MAX_COORDINATE:
            return None
        view = int(np.argmax(item.pixels >= room.min_visible_pixels))
        found.append((view + 1, right, ahead, item.category))
    lines = [f"{view}: {name} {write_position([right, ahead])}" for view, right, ahead, name in sorted(found)]
    return _ask(family, [], "; ".join(lines)) if lines else None


def _objects_in_image(room: RoomGroundTruth) -> list[RoomObject]:
    """Clearly visible objects whose name fits no other object that leaves a trace in the given views."""
    traces = [item for item in room.objects if item.pixels.any()]
    found = []
    for item in traces:
        names = {item.category} | CONFUSABLE.get(item.category, set())
        if room.is_visible(item) and sum(other.category in names for other in traces) == 1:
            found.append(item)
    return found


def _ask_color(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    cases = [
        (item.category, item.color)
        for item in _objects_in_image(room)
        if item.category in COLORED and item.color in COLORS
    ]
    return _ask_for_name(family, cases, rng)


def _ask_image_side(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    sides = ("left", "right")
    cases = []
    for item in _objects_in_image(room):
        place = room.position_in_image(item.center)
        if place is not None and abs(place[0] - 0.5) >= IMAGE_MARGIN and (place[0] > 0.5) == (number % 2):
            cases.append(item.category)
    return _ask(family, [pick(cases, rng)], sides[number % 2]) if cases else None


def _ask_image_position(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    cases = []
    for item in _objects_in_image(room):
        place = room.position_in_image(item.center)
        if place is None or np.abs(place[:, None] - [1 / 3, 2 / 3]).min() < IMAGE_MARGIN:
            continue
        cases.append((item.category, _name_part(place)))
    return _ask_for_name(family, cases, rng)


def _name_part(place: np.ndarray) -> str:
    """The part of an image, of nine, in which a relative position is: "top left"."""
    column, row = np.floor(3 * place).astype(int)
    return f"{ROWS[min(row, 2)]} {COLUMNS[min(column, 2)]}"


def _ask_presence(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    """Ask for an object of the room, so that each category is present about as often as absent."""
    seen = {item.category for item in room.objects if room.is_visible(item)}
    traces = {item.category for item in room.objects if item.pixels.any()}
    if number % 2 == 0:
        cases = sorted(seen)
    else:
        names = {item.category for item in room.objects} - traces
        cases = sorted(name for name in names if not CONFUSABLE.get(name, set()) & traces)
    return _ask(family, [pick(cases, rng)], ("yes", "no")[number % 2]) if cases else None


def _ask_view_count(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    least, most = IMAGE_COUNTS[number % len(IMAGE_COUNTS)]
    traces = [item for item in room.objects if item.pixels.any()]
    cases = []
    for category in COUNTED:
        found = [item for item in traces if item.category == category]
        is_certain = all(map(room.is_visible, found))
        if any(item.category in CONFUSABLE.get(category, ()) for item in traces):
            continue
        if is_certain and least <= len(found) <= most:
            cases.append((category, str(len(found))))
    return _ask(family, *_split(pick(cases, rng))) if cases else None


def _ask_largest_object(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    ranked = sorted(room.objects, key=lambda item: item.pixels[0], reverse=True)
    width, height = room.description["size"]
    first, second = ranked[:2]
    is_certain = first.pixels[0] >= LARGEST_RATIO * second.pixels[0]
    if not is_certain or first.pixels[0] < MIN_LARGEST_SHARE * width * height:
        return None
    return _ask(family, [], first.category)


def _ask_closer(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    camera = room.poses[0, :3, 3]
    # What hangs on a wall is nearly always farther, and a rug closer.
    objects = [item for item in _objects_in_image(room) if item.stands_on >= 0 and item.category != "rug"]
    ranges = [(*item.distance_range(camera), item.category) for item in objects]
    pairs = itertools.permutations(ranges, 2)
    cases = [(near[2], far[2]) for near, far in pairs if near[1] + DISTANCE_MARGIN <= far[0]]
    if not cases:
        return None
    names = pick(cases, rng)
    return _ask(family, [_either(names if number % 2 == 0 else names[::-1], " the")], names[0], names)


def _ask_image_objects(family: str, room: RoomGroundTruth, number: int, rng: Generator) -> Question | None:
    """List all objects, the largest in the image first; without a place where the center is not in the image."""
    found = sorted(filter(room.is_visible, room.objects), key=lambda item: item.pixels[0], reverse=True)
    places = [room.position_in_image(item.center) for item in found]
    names = [
        item.category if place is None else f"{item.category} {_name_part(place)}"
        for item, place in zip(found, places, strict=True)
    ]
    return _ask(family, [], "; ".join(names)) if names else None


def _ask_for_name(family: str, cases: list[tuple[str, str]], rng: Generator) -> Question | None:
    """Ask for a name: of the cases, each with what is asked about and the answer, pick the answer first."""
    if not cases:
        return None
    answer = pick(sorted({answer for _, answer in cases}), rng)
    return _ask(family, [pick([name for name, other in cases if other == answer], rng)], answer)


def _split(case: tuple[str, str]) -> tuple[list[str], str]:
    return [case[0]], case[1]


def _either(names: Sequence[str], article: str = "") -> str:
    """Names as in "bed, the sofa or the door"."""
    *others, last = names
    return f",{article} ".join(others) + f" or{article} {last}"


PLACE_FAMILIES = {
    "grounding": _ask_grounding,
    "object_at": _ask_object_at,
    "relative_position": _ask_relative_position,
    "camera_distance": _ask_camera_distance,
    "pair_distance": _ask_pair_distance,
    "direction": _ask_direction,
    "nearest_object": _ask_nearest_object,
    "nearest_of": _ask_nearest_of,
    "object_length": _ask_object_length,
    "object_count": _ask_object_count,
    "room_area": _ask_room_area,
    "longest_wall": _ask_longest_wall,
    "visible_views": _ask_visible_views,
    "first_view": _ask_first_view,
    "seen_first": _ask_seen_first,
    "room_objects": _ask_room_objects,
}
IMAGE_FAMILIES = {
    "color": _ask_color,
    "image_side": _ask_image_side,
    "image_position": _ask_image_position,
    "presence": _ask_presence,
    "view_count": _ask_view_count,
    "largest_object": _ask_largest_object,
    "closer": _ask_closer,
    "image_objects": _ask_image_objects,
}
TRAINING_FAMILIES = PLACE_FAMILIES | IMAGE_FAMILIES
# Families that are answered with a list of all objects. It would tell the answers to the questions after it.
LIST_FAMILIES = ("room_objects", "image_objects")
# Families that are answered with a position or with words; all others are answered with numbers.
POSITION_FAMILIES = ("grounding", "relative_position")
WORD_FAMILIES = (
    *("object_at", "direction", "nearest_object", "nearest_of", "visible_views", "first_view", "seen_first", "color"),
    *("image_side", "image_position", "presence", "view_count", "largest_object", "closer"),
    *LIST_FAMILIES,
)
