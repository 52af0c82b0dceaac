"""Write questions about rendered rooms: an instruction set to train on, or a benchmark.

    spa3r room-questions --rooms runs/rooms --output runs/questions
    spa3r room-questions --rooms runs/test_rooms --output runs/benchmark \\
        --format benchmark --train runs/questions

An instruction set is a folder with

    data/<shard>.parquet    a `datasets` data set in TRL's conversational vision format: `id`, `images` (paths of the
                            given views), `messages` (images, the official prompt, the answer), `scene_id`,
                            `question_type`, `source`
    rejected.jsonl          rooms of which nothing could be asked
    manifest.json           how many questions of each type there are, how many had no case in their room that was
                            not asked yet, the seed of the rooms, and what answers without images score

A benchmark has `test.jsonl` in place of `data/`, in VSI-Bench's columns: `id`, `dataset`, `scene_name`,
`question_type`, `question`, `ground_truth`, `options`. Its questions are about all views of a room; those of an
instruction set about 4 to 8 views spread over them, as many as official training takes of as many frames.

The questions of a room are a function of the seeds and the room; a run that was killed is resumed to the same bytes.
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
from .ground_truth import read_description, read_facts
from .question_types import QUESTION_TYPES, Question, ask_question
from .text_baselines import blind_bound, frequency_baseline

SOURCE = "rooms"
NOTE_FILE = "room_questions.json"
ROOMS_PER_SHARD = 100
FORMATS = ("train", "benchmark")
# Questions that the scores of answers without images are taken from at most.
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
    """Write the questions of all rooms in a folder.

    Args:
        rooms (`str` or `os.PathLike`): Folder that `spa3r rooms` wrote.
        output (`str` or `os.PathLike`): Folder to write; an earlier run is resumed.
        seed (`int`): Another seed, other questions.
        questions_per_room (`int`):
            Most questions of a room; the types take turns. Fewer are asked where a room has no case that is certain.
        format (`str`): `"train"` or `"benchmark"`.
        train (`str` or `os.PathLike`, *optional*):
            Instruction set that a benchmark's answers without images are learnt from. By default they are learnt from
            the first half of the rooms and scored on the second one.

    Returns:
        `dict`: The manifest.

    Raises:
        ValueError: If an argument is none that is known, there are no rooms, `output` holds other questions, or the
            rooms of `train` were made with the seed of these.
    """
    _check_arguments(seed, questions_per_room, format, train)
    rooms, output = Path(rooms).absolute(), Path(output)
    folders, room_options = _find_rooms(rooms)
    learnt = None if train is None else _read_train(Path(train), room_options["seed"])
    options = {
        "format": format,
        "seed": seed,
        "questions_per_room": questions_per_room,
        "num_rooms": len(folders),
        "rooms": room_options,
    }
    claim_folder(output / NOTE_FILE, json.dumps(options) + "\n")
    write = _write_shards if format == "train" else _write_benchmark
    write(folders, output, seed, questions_per_room)
    manifest = options | {"source": SOURCE} | _summarize(folders, output, options, learnt)
    write_json(output / "manifest.json", manifest, indent=1, sort_keys=False)
    return manifest


def _summarize(folders: Sequence[Path], output: Path, options: dict, learnt: list[Question] | None) -> dict:
    """Count and score what was written, and note the rooms of which nothing was."""
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
    scored = (sample[:half], sample[half:]) if learnt is None else (learnt, sample)
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


def given_views(num_frames: int) -> list[int]:
    """The views that training is given, as in official training of frames that are a second apart.

    One of two, but 4 to 8 where there are as many, spread evenly from the first to the last.
    """
    num_views = min(max(round(num_frames / 2), 4), 8)
    return spread_evenly(num_frames, num_views)


def ask_room(
    folder: Path, views: Sequence[int] | None, seed: int, questions_per_room: int
) -> Iterator[tuple[int, dict, Question]]:
    """Questions of a room's folder about some views, by default all, as (number, description, question)."""
    description = read_description(folder)
    views = range(len(description["frames"])) if views is None else views
    facts = read_facts(folder, description, views)
    first = description["index"] * questions_per_room
    asked = set()
    for number in range(first, first + questions_per_room):
        rng = np.random.default_rng([seed, description["seed"], number])
        question_type, turn = _question_type(number)
        question = ask_question(question_type, facts, turn, rng)
        if question is not None and question.question not in asked:
            asked.add(question.question)
            yield number, description, question


def _question_type(number: int) -> tuple[str, int]:
    """The type of a question by its number over all rooms, and its number among those of the type."""
    names = list(QUESTION_TYPES)
    return names[number % len(names)], number // len(names)


def _check_arguments(seed: int, questions_per_room: int, format: str, train: str | os.PathLike | None) -> None:
    if questions_per_room < 1:
        raise ValueError(f"The number of questions per room must be at least 1, got {questions_per_room}.")
    if seed < 0:
        raise ValueError(f"The seed must not be negative, got {seed}.")
    if format not in FORMATS:
        raise ValueError(f"Unknown format `{format}`; choose one of {', '.join(FORMATS)}.")
    if train is not None and format == "train":
        raise ValueError("A training set to learn from belongs to a benchmark: leave it out, or choose that format.")


def _find_rooms(rooms: Path) -> tuple[list[Path], dict]:
    """Folders of the rooms in natural order, and the options that they were made with."""
    folders = [path.parent for path in rooms.glob("room_*/scene.json")]
    folders.sort(key=lambda folder: natural_key(folder.name))
    if not folders or not (rooms / OPTIONS_FILE).exists():
        raise ValueError(f"There are no rooms in `{rooms}`: make some with spa3r rooms --output {rooms}.")
    options = json.loads((rooms / OPTIONS_FILE).read_text())
    for folder in folders:
        if (seed := read_description(folder)["seed"]) != options["seed"]:
            raise ValueError(
                f"`{folder}` was made with seed {seed}, but the rooms beside it with {options['seed']}: "
                "keep rooms of different seeds in folders of their own."
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
    views = given_views(len(read_description(folder)["frames"]))
    records = []
    for number, description, question in ask_room(folder, views, seed, questions_per_room):
        paths = [folder / "color" / f"{description['frames'][view]['frame']}.jpg" for view in views]
        content = [{"type": "image", "text": None}] * len(paths) + [{"type": "text", "text": question.prompt}]
        # Rooms of different seeds share their names, but are different scenes.
        scene_id = f"{folder.name}_seed{description['seed']}"
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
            for number, _, question in ask_room(folder, None, seed, questions_per_room):
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
    """Scene names and questions of an instruction set of rooms, shard by shard."""
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
    """Questions of the instruction set, `MAX_SCORED` at most; its rooms must not be those of the benchmark."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        raise ValueError(f"`{folder}` holds no finished instruction set of rooms: there is no manifest.json in it.")
    made_with = json.loads(manifest.read_text())
    if made_with.get("source") != SOURCE or made_with.get("format") != "train":
        raise ValueError(f"`{folder}` holds no instruction set of rooms, but {made_with.get('source')} data.")
    if made_with["rooms"]["seed"] == test_seed:
        raise ValueError(
            f"The rooms of the benchmark and those of `{folder}` were both made with seed {test_seed}, so they "
            "are the same rooms: render the benchmark's with another --seed."
        )
    return [question for _, question in itertools.islice(_read_shards(folder), MAX_SCORED)]


def format_table(manifest: dict) -> str:
    """Number of questions and scores of answers without images, by type."""
    lines = [f"{'type':30}{'questions':>10}{'no case':>9}{'frequency':>11}{'blind':>8}"]
    for name in QUESTION_TYPES:
        scores = [manifest[key].get(name) for key in ("frequency_baseline", "blind_bound")]
        frequency, blind = ("-" if score is None else f"{100 * score:.1f}" for score in scores)
        lines.append(
            f"{name:30}{manifest['questions'][name]:>10}{manifest['without_case'][name]:>9}{frequency:>11}{blind:>8}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Command line of the rooms' questions."""
    parser = verb_parser("room-questions", __doc__)
    parser.add_argument("--rooms", type=Path, required=True, help="folder that spa3r rooms wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; an earlier run is resumed")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other questions (default: %(default)s)")
    parser.add_argument("--questions-per-room", type=int, default=10, help="most of a room (default: %(default)s)")
    parser.add_argument("--format", choices=FORMATS, default="train", help="what to write (default: %(default)s)")
    parser.add_argument("--train", type=Path, help="instruction set that a benchmark's blind answers are learnt from")
    options = parser.parse_args(arguments)
    print(format_table(write_questions(**vars(options))))
