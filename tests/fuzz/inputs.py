"""Tiny inputs of every kind that commands read, and the commands that read them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from instruction_records import question, write_lines
from tiny_alignment import OPTIONS as ALIGNMENT
from tiny_instructions import command_line, write_instructions
from tiny_pretraining import TINY_RECIPE
from tiny_spa3_vlm import photo, save_tiny_vlm
from tiny_videos import write_video

from spa3r.data_scripts.rooms.generate import render_rooms
from spa3r.trainers.integrations.cli import main

FOLDERS = {"pretrain": "runs/pretraining", "sft": "runs/tuning"}
SMALL = {"num-figures": 0, "image-width": 56}
SHORT = {"max_steps": 2, "save_steps": 1, "logging_steps": 1, "save_total_limit": 3}


@dataclass(frozen=True)
class Target:
    """Files that a command reads.

    Args:
        kind (`str`): What they are, such as `checkpoint`.
        damaged (`str`): Where they lie, as a pattern relative to the folder of all inputs.
        command (`Callable[[Path, Path], list]`): The command line, given that folder and one to write to.
        copied (`tuple[str, ...]`): What a run needs a copy of: the parts that are damaged or written to.
    """

    kind: str
    damaged: str
    command: Callable[[Path, Path], list]
    copied: tuple[str, ...]


def options(**values) -> list[str]:
    """`--name value` for each; a list is spread out, and `True` gives the name alone."""
    words = []
    for name, value in values.items():
        words.append("--" + name)
        words += [] if value is True else map(str, value) if isinstance(value, list) else [str(value)]
    return words


def pretraining(root: Path, out: Path) -> list[str]:
    return [
        "pretrain",
        "--config",
        root / "recipes/pretrain.yaml",
        # The default is a run of days, where the damage takes the number of steps out of a recipe.
        *options(scenes=f"rooms:{root}/rooms", output_dir=out, max_steps=SHORT["max_steps"]),
    ]


def tuning(root: Path, out: Path) -> list[str]:
    return ["sft", *command_line(root / "vlm", root / "instructions", out, **SHORT)]


def alignment(root: Path, out: Path) -> list[str]:
    settings = ALIGNMENT | {"max_steps": 1, "model_name_or_path": root / "vlm", "scenes": f"rooms:{root}/rooms"}
    return ["align", *options(**settings, output_dir=out)]


def make_inputs(root: Path):
    """Write all inputs, among them two runs that were interrupted after their first steps."""
    render_rooms(root / "rooms", num_scenes=4, num_views=6, size=(56, 42), seed=0, workers=1)
    save_tiny_vlm(root / "vlm")
    write_instructions(root / "instructions", 4)
    write_video(root / "videos" / "room.mp4", 8)
    (root / "photos").mkdir()
    for number, suffix in enumerate(("jpg", "png", "webp", "bmp", "tiff")):
        photo(number, 56, 42).save(root / "photos" / f"{number}.{suffix}")
    _write_recipes(root / "recipes")
    _write_records(root / "records")
    (root / "lists").mkdir()
    (root / "lists" / "scenes.txt").write_text("room_000000_seed0\nscene0011_00\n")
    (root / "lists" / "scenes.csv").write_text("scene_name,dataset\nscene0011_00,scannet\n")
    (root / "lists" / "test.jsonl").write_text('{"scene_name": "scene0011_00"}\n')
    (root / "lists" / "scenes.json").write_text('["scene0011_00", "scene0012_00"]')
    main([*map(str, pretraining(root, root / "runs/pretraining"))])
    main([*map(str, tuning(root, root / "runs/tuning"))])
    shutil.copytree(root / "runs/pretraining/model", root / "spa3r")
    for folder in FOLDERS.values():  # as if killed after the first steps
        shutil.rmtree(root / folder / "model")
    questions = ["room-questions", *options(rooms=root / "rooms", workers=1, output=root / "benchmark")]
    main([*map(str, questions), *"--format benchmark --questions-per-room 2".split()])
    records = [json.loads(line) for line in (root / "benchmark/test.jsonl").read_text().splitlines()]
    (root / "answers").mkdir()
    write_lines(root / "answers/answers.jsonl", [{"id": str(each["id"]), "prediction": "A"} for each in records])
    for name in ("a", "b"):
        main([*map(str, scoring(root, root / "scored" / name))])


def scoring(root: Path, out: Path) -> list[str]:
    given = {"benchmark": "rooms", "data": root / "benchmark", "media": root / "rooms", "output": out}
    return ["benchmark", *options(predictions=root / "answers/answers.jsonl", **given)]


def _write_recipes(folder: Path):
    folder.mkdir()
    pretrain = TINY_RECIPE | {"held_out_scenes": 1, "overrides": {"num_latents": 4}, "eval_strategy": "no"} | SHORT
    tune = {"use_cpu": True, "report_to": "none", "learning_rate": 1e-3, "bf16": False} | SHORT
    for name, recipe in (("pretrain", pretrain), ("sft", tune | {"env": {"SPA3R_FUZZED": 1}})):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))


def _write_records(folder: Path):
    media = folder / "media" / "scannet"
    media.mkdir(parents=True)
    for number in range(3):
        photo(number, 64, 48).save(media / f"{number}.jpg")
    write_video(media / "walk.mp4", 6)
    records = [question(image=f"scannet/{number}.jpg") for number in range(3)]
    records.append(question("<video>\nHow many?", video="scannet/walk.mp4"))
    write_lines(folder / "records.jsonl", records)
    (folder / "list.json").write_text(json.dumps(records))


def _convert_data(file: str):
    return lambda root, out: [
        *("convert-data", "vsi590k", "--input", root / "records" / file, "--media-root", root / "records/media"),
        *("--output", out, "--no-exclude", "--workers", "1"),
    ]


def _ask(root: Path, out: Path, **scene) -> list[str]:
    return ["ask", *options(model=root / "vlm", **scene), "--question", "How many?", "--max-new-tokens", "2"]


def _photos(root: Path) -> list[Path]:
    return sorted((root / "photos").iterdir())


def _video(root: Path) -> dict[str, Path]:
    return {"video": root / "videos/room.mp4"}


def _rendered(root: Path) -> list[Path]:
    return [root / f"rooms/room_000000/color/{view}.jpg" for view in range(3)]


def _encoding(root: Path, out: Path) -> list:
    return ["encode-scenes", *options(model=root / "vlm", instructions=root / "instructions", output=out)]


def _inspection(root: Path, out: Path, **scene) -> list:
    return ["inspect", *options(model=root / "spa3r", output=out, **scene, **SMALL)]


def _assembly(root: Path, out: Path) -> list:
    return ["convert", "assemble", out / "made", *options(vlm="spa3-vlm-tiny", spa3r=root / "spa3r")]


def _asking(root: Path, out: Path) -> list:
    data = {"benchmark": "rooms", "data": root / "benchmark", "media": root / "rooms"}
    return ["benchmark", *options(model=root / "vlm", output=out, frames=2, limit=2, **data)]


def _comparison(root: Path, out: Path) -> list:
    return ["benchmark", "--compare", root / "scored/a", root / "scored/b", "--output", out]


def _tuning_by_recipe(root: Path, out: Path) -> list:
    data = {"model_name_or_path": root / "vlm", "instructions": root / "instructions", "output_dir": out}
    return ["sft", *options(config=root / "recipes/sft.yaml", max_steps=SHORT["max_steps"], **data)]


def _room_questions(root: Path, out: Path) -> list:
    return ["room-questions", *options(rooms=root / "rooms", output=out, workers=1), "--questions-per-room", "2"]


def _rooms(root: Path, out: Path) -> list:
    return ["rooms", *options(output=root / "rooms", scenes=4, views=6, size="56x42", workers=1)]


def _list_of_scenes(root: Path, out: Path) -> list:
    files = sorted(path for path in (root / "lists").iterdir() if not path.name.startswith("."))
    return ["benchmark-scenes", "--files", *files, "--output", out / "list.txt"]


def _resumed(folder: str, command: Callable) -> Callable:
    return lambda root, out: command(root, root / folder)


# Files that are damaged, the command that reads them, and what is restored afterwards.
TARGETS = [
    Target("checkpoint", "vlm/*", lambda root, out: _ask(root, out, images=_rendered(root)[:1]), ("vlm",)),
    Target("checkpoint", "vlm/*", _encoding, ("vlm",)),
    Target("checkpoint", "vlm/*", tuning, ("vlm",)),
    Target("checkpoint", "vlm/*", alignment, ("vlm",)),
    Target("checkpoint", "spa3r/*", lambda root, out: _inspection(root, out, images=_rendered(root)), ("spa3r",)),
    Target("checkpoint", "spa3r/*", _assembly, ("spa3r",)),
    Target("checkpoint", "vlm/*", _asking, ("vlm",)),
    Target("unfinished run", "runs/tuning/**/*", _resumed("runs/tuning", tuning), ("runs/tuning",)),
    Target(
        "unfinished run", "runs/pretraining/**/*", _resumed("runs/pretraining", pretraining), ("runs/pretraining",)
    ),
    Target("instruction set", "instructions/**/*", tuning, ("instructions",)),
    Target("instruction set", "instructions/**/*", _encoding, ("instructions",)),
    Target("raw records", "records/records.jsonl", _convert_data("records.jsonl"), ("records",)),
    Target("raw records", "records/list.json", _convert_data("list.json"), ("records",)),
    Target("raw records", "records/media/**/*", _convert_data("records.jsonl"), ("records",)),
    Target("benchmark", "benchmark/*", scoring, ("benchmark",)),
    Target("benchmark", "answers/*", scoring, ("answers",)),
    Target("benchmark", "scored/**/*", _comparison, ("scored",)),
    Target("recipe", "recipes/pretrain.yaml", pretraining, ("recipes",)),
    Target("recipe", "recipes/sft.yaml", _tuning_by_recipe, ("recipes",)),
    Target("rooms", "rooms/**/*", pretraining, ("rooms",)),
    Target("rooms", "rooms/**/*", alignment, ("rooms",)),
    Target("rooms", "rooms/**/*", _room_questions, ("rooms",)),
    Target("rooms", "rooms/**/*", _rooms, ("rooms",)),
    Target("images", "photos/*", lambda root, out: _ask(root, out, images=_photos(root)), ("photos",)),
    Target("images", "photos/*", lambda root, out: _inspection(root, out, images=_photos(root)), ("photos",)),
    Target("videos", "videos/*", lambda root, out: _ask(root, out, **_video(root), frames=2), ("videos",)),
    Target("videos", "videos/*", lambda root, out: _inspection(root, out, **_video(root)), ("videos",)),
    Target("lists", "lists/*", _list_of_scenes, ("lists",)),
]
