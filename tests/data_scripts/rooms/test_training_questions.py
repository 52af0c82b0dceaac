"""Each answer is computed again from the text of its question and the room's files, in other ways than the code's."""

import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from spa3r.data_scripts.rooms.generate import render_rooms
from spa3r.data_scripts.rooms.ground_truth import read_description, read_ground_truth
from spa3r.data_scripts.rooms.labels import LABELS, STRUCTURE
from spa3r.data_scripts.rooms.question_types import ask_question
from spa3r.data_scripts.rooms.training_questions import (
    IMAGE_FAMILIES,
    LIST_FAMILIES,
    PLACE_FAMILIES,
    POSITION_FAMILIES,
    TRAINING_FAMILIES,
    WORDS,
    read_position,
    write_position,
)
from spa3r.data_scripts.rooms.write_questions import ask_room

NUM_VIEWS, SIZE, CLEAR = 12, (56, 42), 0.015
ROUND = ("ball", "lamp", "plant", "stool", "trash can", "vase")
CONFUSABLE = {
    **{"chair": ["armchair"], "table": ["coffee table", "desk"], "cabinet": ["nightstand", "wardrobe", "sink"]},
    **{"tv": ["monitor"], "monitor": ["tv"], "plant": ["vase"]},
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return render_rooms(tmp_path_factory.mktemp("rooms"), 10, NUM_VIEWS, SIZE, seed=4, workers=1, every=2)


@pytest.fixture(scope="module")
def asked(scenes):
    """Rooms and questions by family; those of images each about one view."""
    found = {name: [] for name in TRAINING_FAMILIES}
    for index, scene in enumerate(scenes):
        description = read_description(scene)
        for families, views, count in (
            (PLACE_FAMILIES, [range(NUM_VIEWS)], 60),
            (IMAGE_FAMILIES, [[view] for view in range(NUM_VIEWS)], 14),
        ):
            for turn, shown in enumerate(views):
                room = read_ground_truth(scene, description, shown, CLEAR)
                first = (index * len(views) + turn) * count
                for _, question in ask_room(room, range(first, first + count), 0, tuple(families)):
                    found[question.question_type].append((View(scene, description, shown), question))
    return found


class View:
    """A room's files, and which of its views are given."""

    def __init__(self, scene, description, shown):
        self.scene, self.description, self.shown = scene, description, shown
        self.objects = [*description["furniture"], *description["wall_objects"]]

    def pixels(self, item):
        frames = [self.description["frames"][view]["visible_pixels"] for view in self.shown]
        return np.array([frame.get(str(item["instance_id"]), 0) for frame in frames])

    def is_clear(self, item):
        return self.pixels(item).max() >= CLEAR * SIZE[0] * SIZE[1]

    def only(self, name, among=None):
        """The one object of a name; fails if it is not clearly visible, or another one may be meant."""
        among = self.objects if among is None else among
        (item,) = [item for item in among if item["category"] == name]
        assert not any(other["category"] in CONFUSABLE.get(name, ()) for other in among)
        assert self.is_clear(item)
        return item

    def in_image(self, name):
        """The one object of a name of which the given views show any pixel."""
        return self.only(name, [item for item in self.objects if self.pixels(item).any()])

    def camera(self, index=0):
        """World-to-camera of a given view."""
        return np.linalg.inv(np.loadtxt(self.scene / "pose" / f"{self.shown[index]}.txt"))

    def in_camera(self, point):
        return (self.camera() @ [*point, 1.0])[:3]

    def in_pixels(self, point):
        image = np.loadtxt(self.scene / "intrinsic" / "intrinsic_color.txt")[:3, :3] @ self.in_camera(point)
        return image[:2] / image[2]


def names_in(question):
    """The names in a question, by the words around them."""
    pattern = re.escape(WORDS[question.question_type]).replace(r"\{\}", "(.+?)")
    return re.fullmatch(pattern, question.question).groups()


def box_points(item, count=9):
    """Points of an object's upright prism, `(count**3, 3)`; those outside a round outline are left out."""
    axis = np.linspace(-0.5, 0.5, count)
    local = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    if item["category"] in ROUND:
        local = local[np.hypot(local[:, 0], local[:, 1]) <= 0.5]
    local = local * item["size"]
    turned = (local[:, 0] + 1j * local[:, 1]) * np.exp(1j * item["yaw"])
    return np.stack([turned.real, turned.imag, local[:, 2]], axis=-1) + item["center"]


def gap(first, second):
    """Distance between the points of two objects; too long by the spacing of the points."""
    outlines = [points[points[:, 2] == points[0, 2], :2] for points in (box_points(first, 13), box_points(second, 13))]
    apart = outlines[0][:, None] - outlines[1][None]
    low, high = sorted((first, second), key=lambda item: item["center"][2])
    above = high["center"][2] - high["size"][2] / 2 - low["center"][2] - low["size"][2] / 2
    return np.hypot(np.hypot(apart[..., 0], apart[..., 1]).min(), max(above, 0))


def either(text):
    """The names in "bed, the sofa or the door"."""
    return re.split(r", (?:the )?| or (?:the )?", text)


def test_every_family_is_asked(asked):
    assert all(len(found) >= 4 for found in asked.values()), {name: len(found) for name, found in asked.items()}


def test_prompts_are_the_short_questions_alone(asked):
    for found in asked.values():
        for _, question in found:
            assert question.prompt == question.question and question.options is None and len(question.prompt) < 110


def test_places_are_those_of_centers_in_the_first_cameras_frame(asked):
    for view, question in asked["grounding"]:
        item = view.only(*names_in(question))
        right, down, ahead = view.in_camera(item["center"])
        sides = ("right" if right > -0.05 else "left", "down" if down > -0.05 else "up")
        words = (*sides, "ahead" if ahead > -0.05 else "behind")
        found = re.fullmatch(r"(\w+) (\d\.\d), (\w+) (\d\.\d), (\w+) (\d\.\d)", question.answer).groups()
        assert found[::2] == words
        assert [float(number) for number in found[1::2]] == pytest.approx(
            abs(np.array([right, down, ahead])), abs=0.051
        )


def test_an_object_at_a_place_has_its_center_there_and_no_other_is_near(asked):
    for view, question in asked["object_at"]:
        place = read_position(*names_in(question))
        item = view.only(question.answer)
        assert np.abs(view.in_camera(item["center"]) - place).max() < 0.051
        others = [other for other in view.objects if other is not item]
        assert min(np.linalg.norm(view.in_camera(other["center"]) - place) for other in others) > 0.7


def test_relative_places_are_those_seen_from_one_object_facing_another(asked):
    for view, question in asked["relative_position"]:
        standing, facing, target = (complex(*view.only(name)["center"][:2]) for name in names_in(question))
        seen = (target - standing) / (facing - standing) * abs(facing - standing)
        right, ahead = read_position(question.answer)
        assert (right, ahead) == pytest.approx((-seen.imag, seen.real), abs=0.051)


def test_distances_from_the_camera_are_those_of_centers(asked):
    for view, question in asked["camera_distance"]:
        item = view.only(*names_in(question))
        assert float(question.answer) == pytest.approx(np.linalg.norm(view.in_camera(item["center"])), abs=0.051)


@pytest.mark.parametrize(
    "short, name",
    [
        ("pair_distance", "object_abs_distance"),
        ("object_length", "object_size_estimation"),
        ("object_count", "object_counting"),
        ("room_area", "room_size_estimation"),
    ],
)
def test_short_forms_have_the_answers_of_the_benchmarks_questions(scenes, short, name):
    compared = 0
    for scene in scenes:
        room = read_ground_truth(scene, read_description(scene), range(NUM_VIEWS), CLEAR)
        for number in range(5):
            question = TRAINING_FAMILIES[short](short, room, number, np.random.default_rng(number))
            official = ask_question(name, room, number, np.random.default_rng(number))
            assert (question is None) == (official is None)
            if question is not None:
                assert question.answer == official.answer
                assert all(word in official.question for word in names_in(question))
                compared += 1
    assert compared >= 10


def test_directions_are_those_from_the_center_of_the_object_to_stand_at(asked):
    sectors = {
        ("left", "right"): {"left": (0, 180), "right": (-180, 0)},
        ("left", "right", "back"): {"left": (45, 135), "right": (-135, -45), "back": (135, 225)},
        ("front-left", "front-right", "back-left", "back-right"): {
            **{"front-left": (0, 90), "front-right": (-90, 0)},
            **{"back-left": (90, 180), "back-right": (-180, -90)},
        },
    }
    for view, question in asked["direction"]:
        *names, answers = re.fullmatch(
            r"At the (.+) facing the (.+), is the (.+?) (\S*left.*)\?", question.question
        ).groups()
        standing, facing, target = (complex(*view.only(name)["center"][:2]) for name in names)
        angle = np.degrees(np.angle((target - standing) / (facing - standing)))
        low, high = sectors[tuple(either(answers))][question.answer]
        assert 9 < (angle - low) % 360 < high - low - 9


def test_the_nearest_object_is_nearer_than_all_others_of_the_room(asked):
    for view, question in asked["nearest_object"]:
        reference = view.only(*names_in(question))
        gaps = {}
        for item in view.objects:
            if item is not reference and item["category"] != "rug":
                gaps.setdefault(item["category"], []).append(gap(reference, item))
        nearest = min(gaps.pop(question.answer))
        assert nearest < min(map(min, gaps.values()))


def test_the_nearest_of_four_is_nearer_than_the_others(asked):
    for view, question in asked["nearest_of"]:
        reference, *names = re.fullmatch(r"Which is nearest to the (.+?), the (.+)\?", question.question).groups()
        gaps = {name: gap(view.only(reference), view.only(name)) for name in either(names[0])}
        assert len(gaps) == 4 and min(gaps, key=gaps.get) == question.answer


def test_the_longest_wall_is_that_of_the_outline(asked):
    for view, question in asked["longest_wall"]:
        (x, y) = np.ptp(np.array(view.description["outline"]), axis=0)
        assert float(question.answer) == pytest.approx(max(x, y), abs=0.051)


def test_views_that_show_an_object_show_it_clearly_and_the_others_show_no_pixel_of_it(asked):
    for view, question in asked["visible_views"]:
        pixels = view.pixels(view.only(*names_in(question)))
        shown = [int(number) - 1 for number in question.answer.split(", ")]
        assert shown == sorted(set(shown)) == np.flatnonzero(pixels).tolist()
        assert pixels[shown].min() >= CLEAR * SIZE[0] * SIZE[1]


def test_no_view_before_the_first_one_shows_a_pixel_of_the_object(asked):
    for view, question in asked["first_view"]:
        (name,) = names_in(question)
        pixels = np.max([view.pixels(item) for item in view.objects if item["category"] == name], axis=0)
        first = int(question.answer) - 1
        assert pixels[first] >= CLEAR * SIZE[0] * SIZE[1] and not pixels[:first].any()


def test_what_is_seen_first_is_clear_before_the_other_leaves_a_trace(asked):
    for view, question in asked["seen_first"]:
        names = either(*names_in(question))
        (other,) = set(names) - {question.answer}
        pixels = {
            name: np.max([view.pixels(item) for item in view.objects if item["category"] == name], axis=0)
            for name in names
        }
        first = np.flatnonzero(pixels[question.answer] >= CLEAR * SIZE[0] * SIZE[1])[0]
        assert not pixels[other][: first + 1].any()


def test_the_list_of_a_room_has_each_clear_object_where_its_center_is_and_by_its_first_clear_view(asked):
    for view, question in asked["room_objects"]:
        listed = [
            re.fullmatch(r"(\d+): (.+?) ((?:left|right) .+)", line).groups() for line in question.answer.split("; ")
        ]
        expected = []
        for item in filter(view.is_clear, view.objects):
            right, _, ahead = view.in_camera(item["center"])
            first = np.flatnonzero(view.pixels(item) >= CLEAR * SIZE[0] * SIZE[1])[0] + 1
            expected.append((first, right, ahead, item["category"]))
        assert [(int(number), name) for number, name, _ in listed] == [(row[0], row[3]) for row in sorted(expected)]
        places = np.array([read_position(place) for _, _, place in listed])
        assert places == pytest.approx(np.array([row[1:3] for row in sorted(expected)]), abs=0.051)


def test_the_list_of_an_image_has_each_clear_object_by_size_with_the_part_where_its_center_is(asked):
    for view, question in asked["image_objects"]:
        clear = sorted(filter(view.is_clear, view.objects), key=lambda item: -view.pixels(item)[0])
        listed = question.answer.split("; ")
        assert len(listed) == len(clear)
        for line, item in zip(listed, clear, strict=True):
            x, y = view.in_pixels(item["center"]) / SIZE
            ahead = view.in_camera(item["center"])[2]
            inside = ahead > 0 and 0 <= x < 1 and 0 <= y < 1
            row, column = ("top", "middle", "bottom"), ("left", "center", "right")
            part = f" {row[int(3 * y)]} {column[int(3 * x)]}" if inside else ""
            assert line == item["category"] + part


def test_lists_come_last_in_a_record_as_they_tell_the_other_answers(scenes):
    description = read_description(scenes[0])
    for families, shown in ((PLACE_FAMILIES, range(NUM_VIEWS)), (IMAGE_FAMILIES, [0])):
        room = read_ground_truth(scenes[0], description, shown, CLEAR)
        found = [question.question_type for _, question in ask_room(room, range(40), 0, tuple(families), True)]
        assert [name in LIST_FAMILIES for name in found] == [False] * (len(found) - 1) + [True]


def test_colors_are_those_of_the_only_object_of_that_name_in_the_image(asked):
    for view, question in asked["color"]:
        assert view.in_image(*names_in(question))["color"] == question.answer


def test_sides_are_those_of_projected_centers_away_from_the_middle(asked):
    for view, question in asked["image_side"]:
        (name,) = re.fullmatch("Is the (.+) in the left or the right half of the image.", question.question).groups()
        x = view.in_pixels(view.in_image(name)["center"])[0] / SIZE[0]
        assert question.answer == ("left" if x < 0.5 else "right") and abs(x - 0.5) > 0.05 and 0 < x < 1


def test_positions_in_the_image_are_the_thirds_of_projected_centers(asked):
    for view, question in asked["image_position"]:
        x, y = view.in_pixels(view.in_image(*names_in(question))["center"]) / SIZE
        row, column = question.answer.split()
        assert row == ["top", "middle", "bottom"][int(3 * y)]
        assert column == ["left", "center", "right"][int(3 * x)]


def label_pixels(view):
    """Number of pixels of each category in the given view's label image."""
    labels = np.asarray(Image.open(view.scene / "label-filt" / f"{view.shown[0]}.png"))
    return {LABELS[label - 1]: int((labels == label).sum()) for label in np.unique(labels) if label}


def test_what_is_present_is_in_the_label_image_and_what_is_absent_is_in_the_room_only(asked):
    for view, question in asked["presence"]:
        (name,) = names_in(question)
        assert (label_pixels(view).get(name, 0) > 0) == (question.answer == "yes")
        assert any(item["category"] == name for item in view.objects)


def test_counts_are_those_of_objects_in_the_image_which_are_all_clear(asked):
    for view, question in asked["view_count"]:
        (name,) = names_in(question)
        shown = [item for item in view.objects if item["category"] == name and view.pixels(item).any()]
        assert str(len(shown)) == question.answer and all(map(view.is_clear, shown))


def test_the_largest_object_covers_far_more_than_any_other(asked):
    for view, question in asked["largest_object"]:
        sizes = {(item["category"], item["instance_id"]): view.pixels(item)[0] for item in view.objects}
        (category, _), second = sorted(sizes, key=sizes.get)[-1:-3:-1]
        assert category == question.answer and max(sizes.values()) > 1.49 * sizes[second]
        labels = {name: count for name, count in label_pixels(view).items() if name not in STRUCTURE}
        assert labels[category] >= max(sizes.values())


def test_the_closer_object_lies_wholly_before_the_other(asked):
    for view, question in asked["closer"]:
        (other,) = set(either(*names_in(question))) - {question.answer}
        position = np.linalg.inv(view.camera())[:3, 3]
        near, far = (
            np.linalg.norm(box_points(view.in_image(name)) - position, axis=-1) for name in (question.answer, other)
        )
        assert near.max() + 0.29 < far.min() + 0.01


@pytest.mark.parametrize("family", ["image_side", "presence"])
def test_yes_and_no_left_and_right_are_equally_frequent(asked, family):
    answers = Counter(question.answer for _, question in asked[family])
    assert len(answers) == 2 and max(answers.values()) < 0.6 * answers.total()


@pytest.mark.parametrize("family", ["closer", "seen_first"])
def test_the_answer_is_as_often_the_first_name_as_the_last(asked, family):
    places = Counter(either(*names_in(question)).index(question.answer) for _, question in asked[family])
    assert set(places) == {0, 1} and max(places.values()) < 0.7 * places.total()


@pytest.mark.parametrize("family", POSITION_FAMILIES)
def test_all_quadrants_are_asked_for(asked, family):
    signs = Counter(tuple(read_position(question.answer)[[0, -1]] < 0) for _, question in asked[family])
    assert len(signs) == 4 and max(signs.values()) < 0.45 * signs.total()


def test_one_view_is_not_asked_for_its_number(scenes):
    room = read_ground_truth(scenes[0], read_description(scenes[0]), [0])
    for family in ("visible_views", "first_view", "seen_first", "room_objects"):
        assert all(TRAINING_FAMILIES[family](family, room, n, np.random.default_rng(n)) is None for n in range(12))


@pytest.mark.parametrize(
    "coordinates, text",
    [
        ((1.24, 0.31, 2.75), "right 1.2, down 0.3, ahead 2.8"),
        ((-0.96, -1.0, -0.04), "left 1.0, up 1.0, ahead 0.0"),
        ((0.0, -9.94), "right 0.0, behind 9.9"),
    ],
)
def test_positions_are_words_and_one_digit_on_each_side_of_the_point(coordinates, text):
    assert write_position(coordinates) == text
    assert read_position(text) == pytest.approx(np.array(coordinates), abs=0.051)
