"""Questions about rendered rooms, of all types of VSI-Bench and in its words, with answers from the exact geometry.

A question is only asked where its answer is certain:

- every thing it names is clearly seen in the given views, and nothing else in the room goes by that name;
- counted things are all clearly seen; sizes are asked of things, and rooms, whose corners all lie within the views;
- distances, angles and first appearances keep a margin from where the answer would change.

What a question's answer shall be, and under which letter it shall stand, follows from the question's number alone, so
that over many rooms all answers and letters come alike often; where a room has no such case, nothing is asked. So are
all questions a function of the seed and the room.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..benchmarks.vsi_bench import write_prompt
from .ground_truth import RoomFacts, Thing, bearing, closest_distance, crossing

LETTERS = "ABCD"

# Counted are things of which there are, in rooms that have any, one in a good part and more in another: a name shall
# not tell its number.
COUNTED = ("cabinet", "chair", "desk", "door", "lamp", "nightstand", "picture", "window")
# Least and greatest count that is asked for: one is found in nearly every room, three or more in few.
COUNTS = ((1, 1), (2, 2), (3, 9), (3, 9), (3, 9))
# Sizes are asked of things of which some are a quarter larger than others.
SIZED = (
    *("ball", "box", "cabinet", "coffee table", "desk", "lamp", "picture", "plant", "rug", "sofa", "stool", "table"),
    *("trash can", "tv", "window"),
)
# Lower and upper bounds of what is asked for, meters, so that near and far, small and large come alike often.
DISTANCES = ((0.6, 1.2), (1.2, 2.0), (2.0, 3.0), (3.0, np.inf))
LENGTHS = ((0.2, 0.6), (0.6, 1.0), (1.0, 1.6), (1.6, np.inf))
# By how much the closest thing is closer than the next one, meters, and how far it is at least: contact is no case.
DISTANCE_MARGIN, LEAST_DISTANCE = 0.3, 0.15
# Meters between the center of what one stands by and what one faces or looks for.
LEAST_SIGHT = 0.8
# Intervals of the bearing, degrees, left positive. Each keeps 10 degrees or more from where the answer changes.
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
# A robot turns left or right where it would turn by 45 to 135 degrees, back where by more.
TURNS = {"Turn Left": (60, 120), "Turn Right": (-120, -60), "Turn Back": (150, 210)}
TURN_LIMITS = {"Turn Left": (45, 135), "Turn Right": (-135, -45), "Turn Back": (135, 225)}
LEAST_LEG, ROBOT_RADIUS = 0.5, 0.1

DIRECTION_QUESTIONS = {
    "object_rel_direction_easy": (
        "If I am standing by the {} and facing the {}, is the {} to the left or the right of the {}?"
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
}


@dataclass(frozen=True)
class Question:
    """A question in the words of VSI-Bench.

    Args:
        question_type (`str`): One of `QUESTION_TYPES`.
        question (`str`): Without prompt and options.
        answer (`str`): A letter where there are options, else a number.
        options (`list[str]`, *optional*): As "A. left".
    """

    question_type: str
    question: str
    answer: str
    options: list[str] | None = None

    @property
    def prompt(self) -> str:
        """The official text of question, options and what to answer with."""
        return write_prompt(vars(self))


def ask_question(question_type: str, facts: RoomFacts, number: int, rng: np.random.Generator) -> Question | None:
    """Ask one question about a room.

    Args:
        question_type (`str`): One of `QUESTION_TYPES`.
        facts (`RoomFacts`): The room and the given views.
        number (`int`): Questions of a type that are numbered consecutively go through all answers and letters.
        rng (`np.random.Generator`): Draws one of the cases that have the answer.

    Returns:
        `Question`, *optional*: `None` if the room has no case that is certain and has the answer.
    """
    return QUESTION_TYPES[question_type](question_type, facts, number, rng)


def _ask_counting(question_type: str, facts: RoomFacts, number: int, rng: np.random.Generator) -> Question | None:
    least, most = COUNTS[number % len(COUNTS)]
    cases = []
    for category in COUNTED:
        things = facts.of_category(category)
        if least <= len(things) <= most and facts.is_certain(category) and all(map(facts.is_clear, things)):
            cases.append((category, len(things)))
    if not cases:
        return None
    category, count = _draw(cases, rng)
    return Question(question_type, f"How many {category}(s) are in this room?", str(count))


def _ask_distance(question_type: str, facts: RoomFacts, number: int, rng: np.random.Generator) -> Question | None:
    things = [thing for thing in facts.named if thing.category != "rug"]
    pairs = [(pair, closest_distance(*pair)) for pair in itertools.combinations(things, 2)]
    found = _draw_measured(pairs, DISTANCES[number % len(DISTANCES)], rng)
    if found is None:
        return None
    pair, distance = found
    first, second = _shuffled(pair, rng)
    text = (
        "Measuring from the closest point of each object, what is the distance between the "
        f"{first.category} and the {second.category} (in meters)?"
    )
    return Question(question_type, text, f"{distance:.1f}")


def _ask_size(question_type: str, facts: RoomFacts, number: int, rng: np.random.Generator) -> Question | None:
    things = [thing for thing in facts.named if thing.category in SIZED and facts.shows_whole(thing)]
    found = _draw_measured([(thing, thing.size.max()) for thing in things], LENGTHS[number % len(LENGTHS)], rng)
    if found is None:
        return None
    thing, length = found
    text = (
        "What is the length of the longest dimension (length, width, or height) of the "
        f"{thing.category}, measured in centimeters?"
    )
    return Question(question_type, text, str(round(100 * length)))


def _ask_room_size(question_type: str, facts: RoomFacts, number: int, rng: np.random.Generator) -> Question | None:
    if not facts.shows_outline():
        return None
    text = (
        "What is the size of this room (in square meters)?\n"
        "If multiple rooms are shown, estimate the size of the combined space."
    )
    return Question(question_type, text, f"{facts.description['area']:.1f}")


def _ask_closest(question_type: str, facts: RoomFacts, number: int, rng: np.random.Generator) -> Question | None:
    things = [thing for thing in facts.named if thing.category != "rug"]
    for row in rng.permutation(len(things)):
        reference = things[row]
        by_distance = sorted((closest_distance(reference, thing), thing.category) for thing in things)
        others = [pair for pair in by_distance if pair[1] != reference.category and pair[0] >= LEAST_DISTANCE]
        # Each of the others may be the answer, beside three that are farther by the margin.
        for choice in rng.permutation(len(others)):
            nearest, answer = others[choice]
            farther = [category for distance, category in others if distance >= nearest + DISTANCE_MARGIN]
            if len(farther) < 3:
                continue
            choices = _shuffled(farther, rng)[:3]
            options, letter = _options(answer, choices, number)
            listed = ", ".join(option[3:] for option in options)
            text = (
                f"Measuring from the closest point of each object, which of these objects ({listed}) is the closest "
                f"to the {reference.category}?"
            )
            return Question(question_type, text, letter, options)
    return None


def _ask_direction(question_type: str, facts: RoomFacts, number: int, rng: np.random.Generator) -> Question | None:
    intervals = DIRECTIONS[question_type]
    answers = list(intervals)
    answer = answers[number % len(answers)]
    cases = _direction_cases(facts, intervals[answer])
    if not cases:
        return None
    standing, facing, target = _draw(cases, rng)
    names = [thing.category for thing in (standing, facing, target, facing)]
    others = _shuffled([other for other in answers if other != answer], rng)
    options, letter = _options(answer, others, number % len(answers) + number // len(answers))
    return Question(question_type, DIRECTION_QUESTIONS[question_type].format(*names), letter, options)


def _direction_cases(facts: RoomFacts, interval: tuple[float, float]) -> list[tuple[Thing, Thing, Thing]]:
    """What to stand by, face and look for so that the bearing lies within the interval from all over the first."""
    things = [thing for thing in facts.named if thing.category != "rug"]
    if len(things) < 3:
        return []
    spots = np.stack([thing.spots for thing in things])  # (things, 9, 2)
    centers = np.stack([thing.center[:2] for thing in things])  # (things, 2)
    angles = bearing(spots[:, None, None], centers[None, :, None, None], centers[None, None, :, None])
    low, high = interval
    inside = ((angles - low) % 360 < high - low).all(axis=-1)  # (standing, facing, target)
    offsets = np.linalg.norm(centers[:, None] - centers[None], axis=-1)
    far = offsets >= LEAST_SIGHT
    # One does not stand by a vase but by the table below it.
    grounded = np.array([thing.stands_on <= 0 for thing in things])
    cases = inside & far[:, :, None] & far[:, None, :] & far[None] & grounded[:, None, None]
    return [(things[a], things[b], things[c]) for a, b, c in np.argwhere(cases)]


def _ask_route(question_type: str, facts: RoomFacts, number: int, rng: np.random.Generator) -> Question | None:
    # One question of four has one turn to fill in, three have two: so all outcomes come alike often.
    num_turns = 1 if number % 4 == 0 else 2
    number = number // 4 if num_turns == 1 else number - number // 4 - 1
    outcomes = list(itertools.product(TURNS, repeat=num_turns))
    turns = outcomes[number % len(outcomes)]
    cases = _route_cases(facts, turns)
    if not cases:
        return None
    start, *stops = [thing.category for thing in _draw(cases, rng)]
    actions = [f"Go forward until the {stops[0]}"]
    for stop in stops[1:]:
        actions += ["[please fill in]", f"Go forward until the {stop}"]
    listed = " ".join(f"{i}. {action}" for i, action in enumerate(actions, start=1))
    text = (
        f"You are a robot beginning at the {start} and facing the {stops[0]}. You want to navigate to the {stops[-1]}."
        " You will perform the following actions (Note: for each [please fill in], choose either 'turn back,' 'turn "
        f"left,' or 'turn right.'): {listed}. You have reached the final destination."
    )
    others = _shuffled([", ".join(outcome) for outcome in outcomes if outcome != turns], rng)
    options, letter = _options(", ".join(turns), others[:3], number % len(outcomes) + number // len(outcomes))
    return Question(question_type, text, letter, options)


def _route_cases(facts: RoomFacts, turns: Sequence[str]) -> list[list[Thing]]:
    """Routes by floor-standing things and doors, clear of all others, on which a robot has to make the turns."""
    stops = [t for t in facts.named if (t.stands_on == 0 and t.category != "rug") or t.category == "door"]
    obstacles = [
        (thing, _grown(thing.footprint, ROBOT_RADIUS))
        for thing in facts.things
        if thing.stands_on == 0 and thing.category != "rug"
    ]
    routes = []
    for first, second in itertools.permutations(stops, 2):
        leave = crossing(first.center[:2], second.center[:2], first.footprint)
        if leave is None:
            continue
        begin = first.center[:2] + leave[1] * (second.center[:2] - first.center[:2])
        arrival = _drive(facts, obstacles, begin, first, second)
        if arrival is not None:
            routes.append(([first, second], first.center[:2], arrival))
    for turn in turns:
        routes = [longer for route in routes for longer in _extend(facts, obstacles, stops, route, turn)]
    return [things for things, _, _ in routes]


def _extend(
    facts: RoomFacts,
    obstacles: list[tuple[Thing, np.ndarray]],
    stops: list[Thing],
    route: tuple[list[Thing], np.ndarray, np.ndarray],
    turn: str,
) -> list[tuple[list[Thing], np.ndarray, np.ndarray]]:
    """Routes, as things, last but one position and last position, that go on with `turn` and a further stop."""
    things, before, here = route
    longer = []
    for stop in stops:
        if stop in things:
            continue
        # The turn is the same whether the robot stops before a thing or is thought to drive from center to center.
        low, high = TURNS[turn]
        driven = float(bearing(here, 2 * here - before, stop.center[:2]))
        centers = [thing.center[:2] for thing in (*things[-2:], stop)]
        thought = float(bearing(centers[1], 2 * centers[1] - centers[0], centers[2]))
        limit_low, limit_high = TURN_LIMITS[turn]
        if (driven - low) % 360 >= high - low or (thought - limit_low) % 360 >= limit_high - limit_low:
            continue
        arrival = _drive(facts, obstacles, here, things[-1], stop)
        if arrival is not None:
            longer.append(([*things, stop], here, arrival))
    return longer


def _drive(
    facts: RoomFacts, obstacles: list[tuple[Thing, np.ndarray]], start: np.ndarray, origin: Thing, goal: Thing
) -> np.ndarray | None:
    """Where a robot at `start`, at the edge of `origin`, arrives at `goal`; `None` if something is in the way."""
    target = goal.center[:2]
    reached = crossing(start, target, goal.footprint)
    if reached is None:
        return None
    end = start + reached[0] * (target - start)
    if np.linalg.norm(end - start) < LEAST_LEG or not facts.is_open(start, end):
        return None
    for thing, roomy in obstacles:
        if thing is goal:
            continue
        # It stands at the edge of its origin, and must not drive through it.
        inside = crossing(start, end, thing.footprint if thing is origin else roomy)
        if inside is not None and (inside[1] - inside[0]) * np.linalg.norm(end - start) > 0.01:
            return None
    return end


def _grown(polygon: np.ndarray, margin: float) -> np.ndarray:
    """A convex polygon with its corners moved away from its center so that its sides move by `margin` or more."""
    center = polygon.mean(axis=0)
    offsets = polygon - center
    sides = np.roll(polygon, -1, axis=0) - polygon
    normals = np.stack([sides[:, 1], -sides[:, 0]], axis=-1) / np.linalg.norm(sides, axis=-1, keepdims=True)
    return center + offsets * (1 + margin / (normals * offsets).sum(axis=-1).min())


def _ask_appearance(question_type: str, facts: RoomFacts, number: int, rng: np.random.Generator) -> Question | None:
    appearances = _appearances(facts)
    cases = [
        [category for category, _, _ in chosen]
        for chosen in itertools.combinations(appearances, 4)
        if all(clear < following for (_, _, clear), (_, following, _) in itertools.pairwise(chosen))
    ]
    if not cases:
        return None
    order = _draw(cases, rng)
    answer = ", ".join(order)
    others = [", ".join(other) for other in itertools.permutations(order) if list(other) != order]
    options, letter = _options(answer, _shuffled(others, rng)[:3], number)
    listed = ", ".join(_shuffled(order, rng))
    text = f"What will be the first-time appearance order of the following categories in the video: {listed}?"
    return Question(question_type, text, letter, options)


def _appearances(facts: RoomFacts) -> list[tuple[str, int, int]]:
    """Each certain category with the first view that shows any of it and the first that shows it clearly, in order."""
    found = []
    for category in sorted({thing.category for thing in facts.things if facts.is_clear(thing)}):
        if not facts.is_certain(category):
            continue
        pixels = np.max([thing.pixels for thing in facts.of_category(category)], axis=0)
        found.append((category, int(np.argmax(pixels > 0)), int(np.argmax(pixels >= facts.clear_pixels))))
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


def _options(answer: str, others: Sequence[str], number: int) -> tuple[list[str], str]:
    """Options with the answer at a place that `number` goes through, and its letter."""
    place = number % (len(others) + 1)
    contents = [*others[:place], answer, *others[place:]]
    return [f"{letter}. {content}" for letter, content in zip(LETTERS, contents, strict=False)], LETTERS[place]


def _draw(cases: Sequence, rng: np.random.Generator):
    return cases[int(rng.integers(len(cases)))]


def _draw_measured(cases: Sequence[tuple], bounds: tuple[float, float], rng: np.random.Generator) -> tuple | None:
    """One of the cases whose last entry lies within the bounds."""
    kept = [case for case in cases if bounds[0] <= case[-1] < bounds[1]]
    return _draw(kept, rng) if kept else None


def _shuffled(values: Sequence, rng: np.random.Generator) -> list:
    return [values[int(i)] for i in rng.permutation(len(values))]
