"""Rendered rooms that the page offers: their photos, questions with true answers, and the view from any place."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ....data_scripts.benchmarks.vsi_bench import write_prompt
from ....data_scripts.rooms.generate import draw_scene, render_rooms
from ....data_scripts.rooms.ground_truth import RoomGroundTruth, read_description, read_ground_truth
from ....data_scripts.rooms.question_types import Question, ask_question
from ....data_scripts.rooms.rendering import RoomRenderer

# As the shipped models were trained, but another seed: rooms that they have never seen, and the first ones of it.
WORLD = {"num_views": 12, "size": (112, 84), "seed": 7, "every": 2}
NUM_ROOMS = 4
MIN_VISIBLE_SHARE = 0.015
ASKED = {
    "room_size_estimation": 1,
    "object_counting": 2,
    "object_abs_distance": 1,
    "object_size_estimation": 1,
    "object_rel_distance": 1,
}
UNITS = {"room_size_estimation": " m²", "object_abs_distance": " m", "object_size_estimation": " cm"}


@dataclass(frozen=True)
class KnownAnswer:
    """A question about a room, as it is shown and as it is asked, and the true answer."""

    text: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class RenderedRoom:
    """
    A room with its definition, so that it can be rendered from anywhere.

    name (`str`): How the page calls it.
    photos (`list[Path]`): The context views.
    poses (`np.ndarray` of shape `(num_views, 4, 4)`): Their true cameras, camera to world, meters.
    renderer (`RoomRenderer`): Renders other views of the same size.
    questions (`list[KnownAnswer]`): Questions with their true answers.
    """

    name: str
    photos: list[Path]
    poses: np.ndarray
    renderer: RoomRenderer
    questions: list[KnownAnswer] = field(default_factory=list)

    def look(self, move: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The true picture `(height, width, 3)` in bytes and depth `(height, width)` in meters from another place.

        Args:
            move (`np.ndarray` of shape `(4, 4)`): The new camera to the first view's, meters.
        """
        picture, depth, _, _ = self.renderer.render(self.poses[0] @ move)
        return picture, depth

    def is_inside(self, move: np.ndarray) -> bool:
        """Whether a camera is inside the room; see `look`."""
        x, y, z = (self.poses[0] @ move)[:3, 3]
        room = self.renderer.room
        if not (0 < x < room.size[0] and 0 < y < room.size[1] and 0 < z < room.size[2]):
            return False
        if room.notch is None:
            return True
        offset = np.abs([x, y] - room.notch.center[:2])
        return bool((offset > room.notch.size[:2] / 2).any())


def make_rooms(folder: Path) -> list[RenderedRoom]:
    """Render the rooms of the page into a folder."""
    rooms = []
    for index, scene in enumerate(render_rooms(folder, NUM_ROOMS, **WORLD)):
        description = read_description(scene)
        truth = read_ground_truth(scene, description, range(WORLD["num_views"]), MIN_VISIBLE_SHARE)
        renderer, poses = draw_scene(index, WORLD["num_views"], WORLD["size"], WORLD["seed"], WORLD["every"])
        photos = [scene / "color" / f"{view}.jpg" for view in range(WORLD["num_views"])]
        name = f"{index + 1} · {description['kind']}"
        rooms.append(RenderedRoom(name, photos, poses, renderer, write_questions(truth)))
    return rooms


def write_questions(room: RoomGroundTruth) -> list[KnownAnswer]:
    """Questions of some types of VSI-Bench, as far as the room has sure answers."""
    questions = {}
    for question_type, count in ASKED.items():
        for number in range(count):
            question = ask_question(question_type, room, number, np.random.default_rng(0))
            if question is not None:
                known = _with_answer(question)
                questions[known.text] = known
    return list(questions.values())


def as_prompt(text: str) -> str:
    """A typed question in the words of VSI-Bench, in which the models were trained."""
    return write_prompt({"question_type": "object_counting", "question": text, "options": None})


def _with_answer(question: Question) -> KnownAnswer:
    text = question.question.split("\n")[0]
    if question.options is None:
        return KnownAnswer(text, question.prompt, question.answer + UNITS.get(question.question_type, ""))
    chosen = next(option for option in question.options if option.startswith(question.answer))
    return KnownAnswer(text, question.prompt, chosen)


def read_photos(room: RenderedRoom) -> list[Image.Image]:
    """The photos of a room, decoded."""
    return [Image.open(photo).convert("RGB") for photo in room.photos]
