"""Write questions about rendered rooms: an instruction set to train on, or a benchmark.

    spa3r room-questions --rooms runs/rooms --output runs/questions
    spa3r room-questions --rooms runs/test_rooms --output runs/benchmark \\
        --format benchmark --train runs/questions

An instruction set is a folder with

    data/<shard>.parquet    a `datasets` data set in TRL's conversational vision format: `id`, `images` (paths of the
                            given views), `messages` (images, the official prompt, the answer), `scene_id`,
                            `question_type`, `source`
    rejected.jsonl          rooms without any question
    manifest.json           number of questions of each type; number left out because no answer was certain, or
                            because they repeated a question about the room; options of the rooms; scores of answers
                            without images

A benchmark has `test.jsonl` instead of `data/`, in VSI-Bench's columns: `id`, `dataset`, `scene_name`,
`question_type`, `question`, `ground_truth`, `options`. Its questions are about all views of a room. Those of an
instruction set are about 4 to 8 evenly spaced views, as many as official training takes from that number of frames.

The questions of a room depend only on the seeds and the room. A killed run resumes and gives the same bytes.
"""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value
from tqdm import tqdm

from ..benchmarks.rooms import OPTIONS_FILE
from ..benchmarks.vsi_bench import parse_prompt
from ..common.command_line import verb_parser
from ..common.files import claim_folder, natural_key, remove_unfinished, replace_when_complete, write_json, write_text
from ..common.videos import spread_evenly
from .ground_truth import read_description, read_ground_truth
from .question_types import QUESTION_TYPES, Question, ask_question
from .text_baselines import blind_bound, frequency_baseline

SOURCE = "rooms"
SETTINGS_FILE = "room_questions.json"
ROOMS_PER_SHARD = 100
FORMATS = ("train", "benchmark")
# Number of questions, at most, from which answers without images are learned and on which they are scored.
MAX_SCORED = 20_000
FEATURES = Features(
    {
        "id": Value("string"),
        "images": List(Image()),
        "messages": List(
            {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
        ),
        "scene_id": Value("string"),
        "question_type": Value("string"),
        "source": Value("string"),
    }
)


def write_questions(
    rooms: str | os.PathLike,
    output: str | os.PathLike,
    seed: int = 0,
    questions_per_room: int = 10,
    format: str = "train",
    train: str | os.PathLike | None = None,
) -> dict:
    """Write questions about all rooms in a folder.

    Args:
        rooms (`str` or `os.PathLike`): Folder written by `spa3r rooms`.
        output (`str` or `os.PathLike`): Folder to write; a killed run resumes.
        seed (`int`): Seed of the questions.
        questions_per_room (`int`):
            Number of questions about a room, at most; the types take turns. A room without a certain case gets fewer.
        format (`str`): `"train"` or `"benchmark"`.
        train (`str` or `os.PathLike`, *optional*):
            Instruction set from which a benchmark's answers without images are learned. By default they are learned
            from the first half of the questions and scored on the second.

    Returns:
        `dict`: The manifest.

    Raises:
        ValueError: If an argument is out of range, there are no rooms, `output` holds other questions, or the rooms
            of `train` were made with the same seed as these.
    """
    _check_arguments(seed, questions_per_room, format, train)
    rooms, output = Path(rooms).absolute(), Path(output)
    folders, room_options = _find_rooms(rooms)
    learned = None if train is None else _read_train(Path(train), room_options["seed"])
    options = {
        "format": format,
        "seed": seed,
        "questions_per_room": questions_per_room,
        "num_rooms": len(folders),
        "rooms": room_options,
    }
    claim_folder(output / SETTINGS_FILE, json.dumps(options) + "\n")
    write = _write_shards if format == "train" else _write_benchmark
    write(folders, output, seed, questions_per_room)
    manifest = options | {"source": SOURCE} | _summarize(folders, output, options, learned)
    write_json(output / "manifest.json", manifest, indent=1, sort_keys=False)
    return manifest


def _summarize(folders: Sequence[Path], output: Path, options: dict, learned: list[Question] | None) -> dict:
    """Count and score the written questions, and list the rooms without any."""
    read = _read_shards if options["format"] == "train" else _read_benchmark
    asked, rejected, sample = Counter(), {folder.name: None for folder in folders}, []
    for scene_name, question in read(output):
        asked[question.question_type] += 1
        rejected.pop(scene_name, None)
        if len(sample) < MAX_SCORED:
            sample.append(question)
    reason = "no question with a certain answer"
    lines = [json.dumps({"scene_name": name, "reason": reason}) + "\n" for name in rejected]
    write_text(output / "rejected.jsonl", "".join(lines))
    half = len(sample) // 2
    scored = (sample[:half], sample[half:]) if learned is None else (learned, sample)
    frequency, blind = frequency_baseline(*scored), blind_bound(*scored)
    numbers = range(len(folders) * options["questions_per_room"])
    wanted = Counter(_question_type(number)[0] for number in numbers)
    return {
        "num_questions": asked.total(),
        "questions": {name: asked[name] for name in QUESTION_TYPES},
        "without_case": {name: wanted[name] - asked[name] for name in QUESTION_TYPES},
        "frequency_baseline": {name: round(score, 4) for name, score in frequency.items()},
        "blind_bound": {name: round(score, 4) for name, score in blind.items()},
    }


def training_views(num_frames: int) -> list[int]:
    """Views for training, evenly spaced from the first to the last, as official training takes them at 1 frame/s.

    Half of the views, but at least 4 and at most 8.
    """
    return spread_evenly(num_frames, min(max(round(num_frames / 2), 4), 8))


def ask_room(
    folder: Path, description: dict, views: Sequence[int], seed: int, questions_per_room: int
) -> Iterator[tuple[int, Question]]:
    """Numbers and questions about some views of a room."""
    room = read_ground_truth(folder, description, views)
    first = description["index"] * questions_per_room
    asked = set()
    for number in range(first, first + questions_per_room):
        rng = np.random.default_rng([seed, description["seed"], number])
        question_type, turn = _question_type(number)
        question = ask_question(question_type, room, turn, rng)
        if question is not None and question.question not in asked:
            asked.add(question.question)
            yield number, question


def _question_type(number: int) -> tuple[str, int]:
    """The type of a question by its number over all rooms, and its number among the questions of that type."""
    names = list(QUESTION_TYPES)
    return names[number % len(names)], number // len(names)


def _check_arguments(seed: int, questions_per_room: int, format: str, train: str | os.PathLike | None) -> None:
    if questions_per_room < 1:
        raise ValueError(f"`questions_per_room` must be at least 1, got {questions_per_room}; ask for more.")
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}; choose another seed.")
    if format not in FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(FORMATS)}, got `{format}`; choose one of these.")
    if train is not None and format == "train":
        raise ValueError(f"`train` is only for a benchmark, got `{train}`; omit it, or set `format` to benchmark.")


def _find_rooms(rooms: Path) -> tuple[list[Path], dict]:
    """Folders of the rooms in natural order, and the options with which they were made."""
    folders = [path.parent for path in rooms.glob("room_*/scene.json")]
    folders.sort(key=lambda folder: natural_key(folder.name))
    if not folders or not (rooms / OPTIONS_FILE).exists():
        raise ValueError(f"There are no rooms in `{rooms}`: render some with spa3r rooms --output {rooms}.")
    options = json.loads((rooms / OPTIONS_FILE).read_text())
    for folder in folders:
        if (seed := read_description(folder)["seed"]) != options["seed"]:
            raise ValueError(
                f"`{folder}` was made with seed {seed}, but the other rooms with seed {options['seed']}: keep them in "
                "separate folders."
            )
    return folders, options


def _write_shards(folders: Sequence[Path], output: Path, seed: int, questions_per_room: int) -> None:
    (output / "data").mkdir(exist_ok=True)
    remove_unfinished(output / "data")
    with tqdm(total=len(folders), desc="Asking about rooms", unit="room") as progress:
        for start in range(0, len(folders), ROOMS_PER_SHARD):
            shard = output / "data" / f"{start // ROOMS_PER_SHARD:05d}.parquet"
            part = folders[start : start + ROOMS_PER_SHARD]
            if shard.exists():
                progress.update(len(part))
                continue
            records = []
            for folder in part:
                records += _train_records(folder, seed, questions_per_room)
                progress.update()
            table = pa.Table.from_pylist(records, schema=FEATURES.arrow_schema)
            with replace_when_complete(shard) as temporary:
                pq.write_table(table, temporary)


def _train_records(folder: Path, seed: int, questions_per_room: int) -> list[dict]:
    description = read_description(folder)
    views = training_views(len(description["frames"]))
    paths = [folder / "color" / f"{description['frames'][view]['frame']}.jpg" for view in views]
    # Rooms of different seeds have the same names but are different scenes.
    scene_id = f"{folder.name}_seed{description['seed']}"
    records = []
    for number, question in ask_room(folder, description, views, seed, questions_per_room):
        content = [{"type": "image", "text": None}] * len(paths) + [{"type": "text", "text": question.prompt}]
        records.append(
            {
                "id": f"{scene_id}_{number % questions_per_room}",
                "images": [{"bytes": None, "path": str(path)} for path in paths],
                "messages": [
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": [{"type": "text", "text": question.answer}]},
                ],
                "scene_id": scene_id,
                "question_type": question.question_type,
                "source": SOURCE,
            }
        )
    return records


def _write_benchmark(folders: Sequence[Path], output: Path, seed: int, questions_per_room: int) -> None:
    if (output / "test.jsonl").exists():
        return
    with replace_when_complete(output / "test.jsonl") as temporary, temporary.open("w") as file:
        for folder in tqdm(folders, desc="Asking about rooms", unit="room"):
            description = read_description(folder)
            views = range(len(description["frames"]))
            for number, question in ask_room(folder, description, views, seed, questions_per_room):
                record = {
                    "id": number,
                    "dataset": SOURCE,
                    "scene_name": folder.name,
                    "question_type": question.question_type,
                    "question": question.question,
                    "ground_truth": question.answer,
                    "options": question.options,
                }
                file.write(json.dumps(record) + "\n")


def _read_shards(folder: Path) -> Iterator[tuple[str, Question]]:
    """Scene names and questions of an instruction set, shard by shard."""
    for shard in sorted((folder / "data").glob("*.parquet")):
        for row in pq.read_table(shard, columns=["messages", "scene_id", "question_type"]).to_pylist():
            asked, answered = row["messages"]
            question, options = parse_prompt(asked["content"][-1]["text"])
            answer = answered["content"][0]["text"]
            yield row["scene_id"].rpartition("_seed")[0], Question(row["question_type"], question, answer, options)


def _read_benchmark(folder: Path) -> Iterator[tuple[str, Question]]:
    with (folder / "test.jsonl").open() as file:
        for row in map(json.loads, file):
            question = Question(row["question_type"], row["question"], row["ground_truth"], row["options"])
            yield row["scene_name"], question


def _read_train(folder: Path, test_seed: int) -> list[Question]:
    """Up to `MAX_SCORED` questions of an instruction set, whose rooms must differ from those of the benchmark."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        raise ValueError(f"`{folder}` has no manifest.json: finish its instruction set with spa3r room-questions.")
    made_with = json.loads(manifest.read_text())
    if made_with.get("source") != SOURCE or made_with.get("format") != "train":
        raise ValueError(
            f"`{folder}` holds {made_with.get('source')} data in format {made_with.get('format')}: give an "
            "instruction set written by spa3r room-questions."
        )
    if made_with["rooms"]["seed"] == test_seed:
        raise ValueError(
            f"The rooms of the benchmark and of `{folder}` are the same, as both were made with seed {test_seed}: "
            "render the benchmark's rooms with another --seed."
        )
    return [question for _, question in itertools.islice(_read_shards(folder), MAX_SCORED)]


def format_table(manifest: dict) -> str:
    """A table of the number of questions and the scores of answers without images, by type."""
    lines = [f"{'type':30}{'questions':>10}{'no case':>9}{'frequency':>11}{'blind':>8}"]
    for name in QUESTION_TYPES:
        scores = [manifest[key].get(name) for key in ("frequency_baseline", "blind_bound")]
        frequency, blind = ("-" if score is None else f"{100 * score:.1f}" for score in scores)
        lines.append(
            f"{name:30}{manifest['questions'][name]:>10}{manifest['without_case'][name]:>9}{frequency:>11}{blind:>8}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run `spa3r room-questions`."""
    parser = verb_parser("room-questions", __doc__)
    parser.add_argument("--rooms", type=Path, required=True, help="folder written by spa3r rooms")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; a killed run resumes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the questions (default: %(default)s)")
    parser.add_argument("--questions-per-room", type=int, default=10, help="at most (default: %(default)s)")
    parser.add_argument("--format", choices=FORMATS, default="train", help="what to write (default: %(default)s)")
    parser.add_argument("--train", type=Path, help="instruction set to learn a benchmark's blind answers from")
    options = parser.parse_args(arguments)
    print(format_table(write_questions(**vars(options))))
