"""Each answer is computed again from the text of its question and scene.json, by sampling and small steps."""

import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest

from spa3r.data_scripts.rooms.camera_walk import draw_walk
from spa3r.data_scripts.rooms.generate import render_rooms
from spa3r.data_scripts.rooms.ground_truth import RoomGroundTruth, read_description, read_ground_truth
from spa3r.data_scripts.rooms.layout import ROOM_KINDS, draw_room
from spa3r.data_scripts.rooms.question_types import QUESTION_TYPES, Question, ask_question
from spa3r.data_scripts.rooms.write_questions import ask_room

NUM_VIEWS, SIZE = 24, (56, 42)
VIEWS = range(0, NUM_VIEWS, 3)
ROUND = ("ball", "lamp", "plant", "stool", "trash can", "vase")
CONFUSABLE = {
    **{"chair": ["armchair"], "table": ["coffee table", "desk"], "cabinet": ["nightstand", "wardrobe", "sink"]},
    **{"tv": ["monitor"], "monitor": ["tv"], "plant": ["vase"]},
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Pairs of scene description and question from ten rendered rooms, by type."""
    found = {name: [] for name in QUESTION_TYPES}
    for scene in render_rooms(tmp_path_factory.mktemp("rooms"), 10, NUM_VIEWS, SIZE, seed=3, workers=1):
        description = read_description(scene)
        numbers = range(60 * description["index"], 60 * description["index"] + 60)
        for _, question in ask_room(read_ground_truth(scene, description, VIEWS), numbers, 0, tuple(QUESTION_TYPES)):
            found[question.question_type].append((description, question))
    return found


def described(room, rng):
    """The scene.json of a room whose views show one object after another."""
    furniture = [
        (p.furniture.category, p.furniture.color_name, p.box, p.stands_on, p.instance_id) for p in room.pieces
    ] + [(w.category, w.color_name, w.box, -1, w.instance_id) for w in room.wall_objects]
    items = [
        {
            "instance_id": i,
            "category": c,
            "color": color,
            "center": b.center,
            "size": b.size,
            "yaw": b.yaw,
            "stands_on": s,
        }
        for c, color, b, s, i in furniture
    ]
    first = {item["instance_id"]: int(rng.integers(6)) for item in items}
    frames = [{"frame": f, "visible_pixels": {str(i): 999 for i, s in first.items() if f >= s}} for f in range(12)]
    shell = {"size": list(SIZE), "outline": room.outline, "height": room.size[2], "area": room.area}
    return shell | {"furniture": items, "wall_objects": [], "frames": frames}


@pytest.fixture(scope="module")
def many():
    """Questions about 120 rooms that are not rendered, two of each type and room."""
    questions = []
    for index in range(120):
        rng = np.random.default_rng([9, index])
        room, poses = None, None
        while poses is None:
            room = draw_room(list(ROOM_KINDS)[index % len(ROOM_KINDS)], rng)
            poses = draw_walk(room, 36, rng)
        intrinsics = np.array([[45.0, 0, 28], [0, 45.0, 21], [0, 0, 1]])
        facts = RoomGroundTruth(described(room, rng), range(12), poses[::3], intrinsics)
        for name, turn in itertools.product(QUESTION_TYPES, range(2)):
            questions.append(ask_question(name, facts, 2 * index + turn, rng))
    return [question for question in questions if question is not None]


def objects_of(description):
    return [*description["furniture"], *description["wall_objects"]]


def only(description, category):
    """The only object of a category; fails if there are several, another may be meant, or no view shows it."""
    (item,) = [item for item in objects_of(description) if item["category"] == category]
    assert not any(other["category"] in CONFUSABLE.get(category, ()) for other in objects_of(description))
    assert max(pixels_of(description, item)) >= 0.005 * SIZE[0] * SIZE[1]
    return item


def pixels_of(description, item):
    return [description["frames"][view]["visible_pixels"].get(str(item["instance_id"]), 0) for view in VIEWS]


def inside(item, points, margin=0.0):
    """Which points lie inside the item's outline, seen from above."""
    offsets = points - np.array(item["center"][:2])
    x = offsets[:, 0] * math.cos(item["yaw"]) + offsets[:, 1] * math.sin(item["yaw"])
    y = offsets[:, 1] * math.cos(item["yaw"]) - offsets[:, 0] * math.sin(item["yaw"])
    width, depth = item["size"][0] / 2 + margin, item["size"][1] / 2 + margin
    if item["category"] in ROUND or (item["category"] == "table" and width == depth):
        return (x / width) ** 2 + (y / depth) ** 2 < 1
    return (np.abs(x) < width) & (np.abs(y) < depth)


def sampled(item, step=0.02):
    """Points inside the item's outline, seen from above."""
    reach = math.hypot(*item["size"][:2]) / 2
    axis = np.arange(-reach - step, reach + 2 * step, step)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2) + np.array(item["center"][:2])
    return points[inside(item, points, 0.001)]


def distance(first, second):
    """Distance between sampled points, at most 4 cm too long."""
    a, b = sampled(first, 0.03), sampled(second, 0.03)
    # |a - b|^2 = |a|^2 - 2 a b + |b|^2
    squares = (a**2).sum(axis=1)[:, None] - 2 * a @ b.T + (b**2).sum(axis=1)
    nearest = math.sqrt(max(float(squares.min()), 0))
    low, high = sorted((first, second), key=lambda item: item["center"][2])
    gap = high["center"][2] - high["size"][2] / 2 - low["center"][2] - low["size"][2] / 2
    return math.hypot(nearest, max(gap, 0))


def chosen(question):
    """The text of the option that the answer names."""
    (content,) = [option[3:] for option in question.options if option[0] == question.answer]
    return content


def turned(standing, facing, target):
    """Bearing of the target in degrees, clockwise from 0 to 360, from each standing point."""
    heading = np.array([complex(*(np.array(facing[:2]) - point)) for point in standing])
    there = np.array([complex(*(np.array(target[:2]) - point)) for point in standing])
    return np.degrees(-np.angle(there / heading)) % 360


def test_every_type_is_asked(asked):
    assert all(len(found) >= 5 for found in asked.values())


def test_counts_are_those_of_the_room_and_all_counted_objects_are_visible(asked):
    for description, question in asked["object_counting"]:
        category = re.fullmatch(r"How many (.+)\(s\) are in this room\?", question.question)[1]
        counted = [item for item in objects_of(description) if item["category"] == category]
        assert question.answer == str(len(counted))
        assert all(max(pixels_of(description, item)) >= 0.005 * SIZE[0] * SIZE[1] for item in counted)
        assert not any(item["category"] in CONFUSABLE.get(category, ()) for item in objects_of(description))


def test_distances_are_those_of_sampled_points(asked):
    pattern = r"Measuring from .* the distance between the (.+) and the (.+) \(in meters\)\?"
    for description, question in asked["object_abs_distance"]:
        first, second = (only(description, name) for name in re.fullmatch(pattern, question.question).groups())
        assert -0.01 < distance(first, second) - float(question.answer) + 0.05 < 0.15
        assert float(question.answer) >= 0.6


def test_sizes_are_the_longest_side_in_centimeters(asked):
    for description, question in asked["object_size_estimation"]:
        name = re.search(r"of the ([^()]+), measured in centimeters", question.question)[1]
        sides = only(description, name)["size"]
        assert float(question.answer) == pytest.approx(100 * max(sides), abs=0.5)


def test_room_sizes_are_the_share_of_sampled_points_inside_the_outline(asked):
    for description, question in asked["room_size_estimation"]:
        outline = np.array(description["outline"])
        high = outline.max(axis=0)
        points = (np.stack(np.meshgrid(np.arange(400), np.arange(400)), axis=-1).reshape(-1, 2) + 0.5) / 400 * high
        crossings = np.zeros(len(points), int)
        for (x1, y1), (_, y2) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
            spans = (y1 > points[:, 1]) != (y2 > points[:, 1])
            crossings += spans & (points[:, 0] < x1)  # walls run along the axes
        assert float(question.answer) == pytest.approx((crossings % 2).mean() * high.prod(), rel=0.005, abs=0.06)


def test_the_closest_object_is_closest_among_sampled_points_by_a_margin(asked):
    pattern = r"Measuring .* which of these objects \((.+)\) is the closest to the (.+)\?"
    for description, question in asked["object_rel_distance"]:
        listed, reference = re.fullmatch(pattern, question.question).groups()
        assert listed.split(", ") == [option[3:] for option in question.options]
        names = listed.split(", ")
        distances = [distance(only(description, name), only(description, reference)) for name in names]
        (nearest, answer), (second, _) = sorted(zip(distances, names, strict=True))[:2]
        assert answer == chosen(question)
        assert second - nearest > 0.25


SECTORS = {
    "object_rel_direction_easy": {"right": (0, 180), "left": (180, 360)},
    "object_rel_direction_medium": {"right": (45, 135), "back": (135, 225), "left": (225, 315)},
    "object_rel_direction_hard": {
        "front-right": (0, 90),
        "back-right": (90, 180),
        "back-left": (180, 270),
        "front-left": (270, 360),
    },
}


@pytest.mark.parametrize("name", SECTORS)
def test_directions_are_the_same_from_all_points_of_the_object_to_stand_by(asked, name):
    for description, question in asked[name]:
        pattern = r"If I am standing by the (.+) and facing the (.+), is the (.+?) to (the left|my)"
        standing, facing, target = (only(description, n) for n in re.match(pattern, question.question).groups()[:3])
        angles = turned(sampled(standing, 0.05), facing["center"], target["center"])
        low, high = SECTORS[name][chosen(question)]
        assert ((angles > low + 5) & (angles < high - 5)).all()


def walk(start, goal):
    """Steps of 1 cm from a point until the goal's outline is reached."""
    target = np.array(goal["center"][:2])
    points = start + np.arange(0, 1, 0.01 / np.linalg.norm(target - start))[:, None] * (target - start)
    reached = int(np.argmax(inside(goal, points)))
    return points[: reached + 1]


def is_free(description, points, ends):
    """Whether the steps stay in the room and away from everything on the floor except the ends."""
    outline = description["outline"]
    crossings = np.zeros(len(points), int)
    for (x, y1), (_, y2) in zip(outline, outline[1:] + outline[:1], strict=True):
        crossings += ((y1 > points[:, 1]) != (y2 > points[:, 1])) & (points[:, 0] < x)
    if (crossings % 2 == 0).any():
        return False
    floor = [item for item in description["furniture"] if item["stands_on"] == 0 and item["category"] != "rug"]
    others = [item for item in floor if item not in ends]
    return not any(inside(item, points, 0.05).any() for item in others)


def test_routes_lead_to_their_goal_by_the_chosen_turns_through_free_space(asked):
    pattern = (
        r"You are a robot beginning at the (.+) and facing the (.+)\. You want to navigate to the (.+)\. You will"
    )
    for description, question in asked["route_planning"]:
        start, facing, goal = (only(description, n) for n in re.match(pattern, question.question).groups())
        stops = re.findall(r"\d\. Go forward until the ([a-z ]+?)(?= \d\.|\. You)", question.question)
        stops = [only(description, name) for name in stops]
        assert stops[0] == facing and stops[-1] == goal
        turns = chosen(question).split(", ")
        assert len(question.options) == {1: 3, 2: 4}[len(turns)]
        assert question.question.count("[please fill in] ") == len(turns) == len(stops) - 1
        position, before, previous = np.array(start["center"][:2]), None, start
        for i, stop in enumerate(stops):
            points = walk(position, stop)
            ahead = complex(*(np.array(stop["center"][:2]) - position))
            if before is not None:
                angle = math.degrees(np.angle(ahead / before))
                kind = "Turn Back" if abs(angle) > 135 else "Turn Left" if 45 < angle else "Turn Right"
                assert kind == turns[i - 1]
                assert min(abs(abs(angle) - 45), abs(abs(angle) - 135)) > 10 and abs(angle) > 45
                # The robot stands at the edge of the previous object and must not drive through it.
                assert not inside(previous, points[3:], -0.02).any()
            assert is_free(description, points, (previous, stop))
            position, before, previous = points[-1], ahead, stop


def test_appearance_orders_are_those_of_first_clear_views_without_earlier_glimpses(asked):
    for description, question in asked["obj_appearance_order"]:
        listed = re.search(r"in the video: (.+)\?", question.question)[1].split(", ")
        order = chosen(question).split(", ")
        assert sorted(order) == sorted(listed)
        spans = []
        for category in order:
            seen = np.array([pixels_of(description, t) for t in objects_of(description) if t["category"] == category])
            most = seen.max(axis=0)
            spans.append((np.flatnonzero(most > 0)[0], np.flatnonzero(most >= 0.005 * SIZE[0] * SIZE[1])[0]))
        assert all(clear < glimpsed for (_, clear), (glimpsed, _) in itertools.pairwise(spans))


def test_options_are_lettered_and_all_different(asked):
    sizes = {"object_rel_direction_easy": [2], "object_rel_direction_medium": [3], "route_planning": [3, 4]}
    for name, found in asked.items():
        for _, question in found:
            if question.options is not None:
                count = len(question.options)
                assert count in sizes.get(name, [4])
                assert [option[:3] for option in question.options] == ["A. ", "B. ", "C. ", "D. "][:count]
                assert len({option[3:] for option in question.options}) == count


def test_letters_are_equally_frequent(many):
    for name in QUESTION_TYPES:
        by_size = {}
        for question in many:
            if question.question_type == name and question.options:
                by_size.setdefault(len(question.options), Counter())[question.answer] += 1
        for size, letters in by_size.items():
            # Far closer than random letters would be.
            assert max(letters.values()) < 1.15 * letters.total() / size + 2, (name, letters)


@pytest.mark.parametrize(
    "name, most",
    [
        ("object_counting", 0.45),
        ("object_abs_distance", 0.15),
        ("object_size_estimation", 0.1),
        ("room_size_estimation", 0.1),
        ("object_rel_distance", 0.15),
        ("route_planning", 0.2),
        *((name, 1.25 / len(sectors)) for name, sectors in SECTORS.items()),
    ],
)
def test_no_answer_dominates(many, name, most):
    questions = [question for question in many if question.question_type == name]
    answers = Counter(chosen(question) if question.options else question.answer for question in questions)
    assert answers.total() > 60
    assert set(answers) >= set(SECTORS.get(name, ()))
    assert max(answers.values()) < most * answers.total(), answers


def test_prompts_are_the_official_ones_letter_by_letter():
    number = Question("object_counting", "How many chair(s) are in this room?", "3")
    assert number.prompt == (
        "These are frames of a video.\nHow many chair(s) are in this room?\n"
        "Please answer the question using a single word or phrase."
    )
    choice = Question("object_rel_direction_easy", "Left or right?", "A", ["A. left", "B. right"])
    assert choice.prompt == (
        "These are frames of a video.\nLeft or right?\nOptions:\nA. left\nB. right\n"
        "Answer with the option's letter from the given choices directly."
    )


# X stands for a name; < > enclose an optional part.
WORDS = {
    "object_counting": "How many X(s) are in this room?",
    "object_abs_distance": (
        "Measuring from the closest point of each object, what is the distance between the X and the X (in meters)?"
    ),
    "object_size_estimation": (
        "What is the length of the longest dimension (length, width, or height) of the X, measured in centimeters?"
    ),
    "room_size_estimation": (
        "What is the size of this room (in square meters)?\nIf multiple rooms are shown, estimate the size of the "
        "combined space."
    ),
    "object_rel_distance": (
        "Measuring from the closest point of each object, which of these objects (X, X, X, X) is the closest to the X?"
    ),
    "object_rel_direction_easy": (
        "If I am standing by the X and facing the X, is the X to the left or the right of the X?"
    ),
    "object_rel_direction_medium": (
        "If I am standing by the X and facing the X, is the X to my left, right, or back?\nAn object is to my back if "
        "I would have to turn at least 135 degrees in order to face it."
    ),
    "object_rel_direction_hard": (
        "If I am standing by the X and facing the X, is the X to my front-left, front-right, back-left, or "
        "back-right?\nThe directions refer to the quadrants of a Cartesian plane (if I am standing at the origin and "
        "facing along the positive y-axis)."
    ),
    "route_planning": (
        "You are a robot beginning at the X and facing the X. You want to navigate to the X. You will perform the "
        "following actions (Note: for each [please fill in], choose either 'turn back,' 'turn left,' or 'turn "
        "right.'): 1. Go forward until the X 2. [please fill in] 3. Go forward until the X"
        "< 4. [please fill in] 5. Go forward until the X>. You have reached the final destination."
    ),
    "obj_appearance_order": (
        "What will be the first-time appearance order of the following categories in the video: X, X, X, X?"
    ),
}


@pytest.mark.parametrize("name", QUESTION_TYPES)
def test_questions_have_the_words_of_the_benchmark(asked, name):
    pattern = re.escape(WORDS[name]).replace("X", "[a-z ]+").replace("<", "(").replace(">", ")?")
    assert all(re.fullmatch(pattern, question.question) for _, question in asked[name])
