"""Write questions about rendered rooms: an instruction set to train on, or a benchmark.

    spa3r room-questions --rooms runs/rooms --output runs/questions
    spa3r room-questions --rooms runs/test_rooms --output runs/benchmark \\
        --format benchmark --train runs/questions
    spa3r room-questions --rooms runs/rooms --output runs/places --families benchmark 3d --turns 6
    spa3r room-questions --rooms runs/rooms --output runs/images --families 2d --turns 4

An instruction set is a folder with

    data/<shard>.parquet    a `datasets` data set in TRL's conversational vision format: `id`, `images` (paths of the
                            given views), `messages` (images, the official prompt, the answer), `scene_id`,
                            `question_type` (one for each turn, separated by commas), `source`, `objects`
                            (of what the views show: name, place in the first view's frame, first view)
    rejected.jsonl          rooms without any question
    manifest.json           number of questions of each type; number left out because no answer was certain, or
                            because they repeated a question about the room; options of the rooms; scores of answers
                            without images

A benchmark has `test.jsonl` instead of `data/`, in VSI-Bench's columns: `id`, `dataset`, `scene_name`,
`question_type`, `question`, `ground_truth`, `options`. Its questions are about all views of a room. Those of an
instruction set are about evenly spaced views: 4 to 8, as many as official training takes from that number of frames,
or as many as you say. With `--turns` a record holds several questions about the same views, one after another.

Training may also use short questions with plain answers, which teach where things are: the families "3d", about all
given views, and "2d", about a single image, another one for each record. With `--lettered-share` some of them have
lettered options, by which a model learns to answer with letters.

The questions of a room depend only on the options and the room. A killed run resumes and gives the same bytes, for any
number of workers.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from ..benchmarks.rooms import OPTIONS_FILE
from ..benchmarks.vsi_bench import parse_prompt
from ..common.command_line import verb_parser
from ..common.files import (
    blame_file,
    claim_folder,
    natural_key,
    read_json_object,
    remove_unfinished,
    replace_when_complete,
    write_json,
    write_text,
)
from ..common.locks import only_run_in
from ..common.processes import call_in_processes
from ..common.videos import spread_evenly
from .ground_truth import MIN_VISIBLE_SHARE, RoomGroundTruth, read_description, read_ground_truth
from .question_options import FAMILIES, FORMATS, GROUPS, QuestionOptions
from .question_types import Question
from .text_baselines import blind_bound, frequency_baseline
from .training_questions import LIST_FAMILIES, TRAINING_FAMILIES, ShortQuestion, with_options

# Imported where there is Parquet, so that a benchmark needs no pyarrow.
if TYPE_CHECKING:
    import pyarrow as pa

SOURCE = "rooms"
RENDER_AGAIN = "render the rooms again with spa3r rooms"
SETTINGS_FILE = "room_questions.json"
ROOMS_PER_SHARD = 100
# Number of questions, at most, from which answers without images are learned and on which they are scored.
MAX_SCORED = 20_000
LETTERING = 1  # seeds the choice of the questions with letters, apart from the questions themselves


@functools.cache
def _schema() -> pa.Schema:
    """The columns of an instruction set."""
    from datasets import Features, Image, List, Value  # here, so that --help does not wait for it

    return Features(
        {
            "id": Value("string"),
            "images": List(Image()),
            "messages": List(
                {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
            ),
            "scene_id": Value("string"),
            "question_type": Value("string"),
            "source": Value("string"),
            "objects": List(
                {"name": Value("string"), "place": List(Value("float32")), "first_view": Value("float32")}
            ),
        }
    ).arrow_schema


def write_questions(
    rooms: str | os.PathLike,
    output: str | os.PathLike,
    options: QuestionOptions,
    train: str | os.PathLike | None = None,
    workers: int = 1,
) -> dict:
    """Write questions about all rooms in a folder.

    Args:
        rooms (`str` or `os.PathLike`): Folder written by `spa3r rooms`.
        output (`str` or `os.PathLike`): Folder to write; a killed run resumes.
        options (`QuestionOptions`): What is asked.
        train (`str` or `os.PathLike`, *optional*):
            Instruction set from which a benchmark's answers without images are learned. By default they are learned
            from the first half of the questions and scored on the second.
        workers (`int`): Number of processes; 1 asks in the current process.

    Returns:
        `dict`: The manifest.

    Raises:
        ValueError: If an argument is out of range, there are no rooms, `output` holds other questions, or the rooms
            of `train` were made with the same seed as these.
    """
    if train is not None and options.format == "train":
        raise ValueError(f"`train` is only for a benchmark, got `{train}`; omit it, or set `format` to benchmark.")
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1, got {workers}; ask for more.")
    rooms, output = Path(rooms).absolute(), Path(output)
    folders, room_options = _find_rooms(rooms)
    if (options.num_views or 1) > room_options["views"]:
        raise ValueError(
            f"`views_per_question` must be at most the {room_options['views']} views of a room, got "
            f"{options.num_views}; ask for fewer, or render the rooms with more."
        )
    learned = None if train is None else _read_train(Path(train), room_options["seed"])
    made_with = options.as_json() | {"num_rooms": len(folders), "rooms": room_options}
    claim_folder(output / SETTINGS_FILE, json.dumps(made_with) + "\n")
    write = _write_shards if options.format == "train" else _write_benchmark
    write(folders, output, options, workers)
    manifest = made_with | {"source": SOURCE} | _summarize(folders, output, options, learned)
    write_json(output / "manifest.json", manifest, indent=1, sort_keys=False)
    return manifest


def _summarize(
    folders: Sequence[Path], output: Path, options: QuestionOptions, learned: list[Question] | None
) -> dict:
    """Count and score the written questions, and list the rooms without any."""
    read = _read_shards if options.format == "train" else _read_benchmark
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
    numbers = range(len(folders) * options.questions_per_room)
    wanted = Counter(_family(number, options.names)[0] for number in numbers)
    return {
        "num_questions": asked.total(),
        "questions": {name: asked[name] for name in options.names},
        "without_case": {name: wanted[name] - asked[name] for name in options.names},
        "frequency_baseline": {name: round(score, 4) for name, score in frequency.items()},
        "blind_bound": {name: round(score, 4) for name, score in blind.items()},
    }


def training_views(num_frames: int) -> list[int]:
    """Views for training, evenly spaced from the first to the last, as official training takes them at 1 frame/s.

    Half of the views, but at least 4 and at most 8.
    """
    return spread_evenly(num_frames, min(max(round(num_frames / 2), 4), 8))


def ask_room(
    room: RoomGroundTruth, numbers: Sequence[int], seed: int, families: Sequence[str], together: bool = False
) -> list[tuple[int, Question]]:
    """Ask the questions with some numbers, counted over all rooms, about the given views of a room.

    Questions without a certain answer, and those that repeat a text, are left out.

    Args:
        room (`RoomGroundTruth`): The room and the given views.
        numbers (`Sequence[int]`): Numbers of the questions.
        seed (`int`): Seed of the questions.
        families (`Sequence[str]`): Families that take turns.
        together (`bool`, *optional*, defaults to `False`):
            Whether the questions stand in one record, one after another. Their answers are then drawn one by one
            instead of in turn, and their order is random: otherwise all letters of a record would be the same, and an
            answer could be read from the one before. Lists of all objects come last.
    """
    asked = {}
    if together:
        numbers = np.random.default_rng([seed, room.description["seed"], *numbers[:1]]).permutation(numbers).tolist()
    for number in numbers:
        rng = np.random.default_rng([seed, room.description["seed"], number])
        family, turn = _family(number, families)
        if together:
            turn = int(rng.integers(2**16))
        question = FAMILIES[family](family, room, turn, rng)
        if question is not None:
            asked.setdefault(question.question, (number, question))
    found = list(asked.values())
    return sorted(found, key=lambda item: item[1].question_type in LIST_FAMILIES) if together else found


def _family(number: int, families: Sequence[str]) -> tuple[str, int]:
    """The family of a question by its number over all rooms, and its number among the questions of that family."""
    return families[number % len(families)], number // len(families)


def _find_rooms(rooms: Path) -> tuple[list[Path], dict]:
    """Folders of the rooms in natural order, and the options with which they were made."""
    folders = [path.parent for path in rooms.glob("room_*/scene.json")]
    folders.sort(key=lambda folder: natural_key(folder.name))
    if not folders or not (rooms / OPTIONS_FILE).exists():
        raise ValueError(f"There are no rooms in `{rooms}`: render some with spa3r rooms --output {rooms}.")
    options = read_json_object(rooms / OPTIONS_FILE, RENDER_AGAIN)
    for folder in folders:
        with blame_file(folder, RENDER_AGAIN):
            seed, expected = read_description(folder)["seed"], options["seed"]
        if seed != expected:
            raise ValueError(
                f"`{folder}` was made with seed {seed}, but the other rooms with seed {expected}: keep them in "
                "separate folders."
            )
    return folders, options


def _write_shards(folders: Sequence[Path], output: Path, options: QuestionOptions, workers: int) -> None:
    (output / "data").mkdir(exist_ok=True)
    remove_unfinished(output / "data")
    parts = [folders[start : start + ROOMS_PER_SHARD] for start in range(0, len(folders), ROOMS_PER_SHARD)]
    shards = [(output / "data" / f"{index:05d}.parquet", part) for index, part in enumerate(parts)]
    missing = [(shard, part) for shard, part in shards if not shard.exists()]
    num_done = sum(len(part) for shard, part in shards if shard.exists())
    with tqdm(total=len(folders), initial=num_done, desc="Asking about rooms", unit="room") as progress:
        write = partial(_write_shard, options=options)
        for num_rooms in call_in_processes(write, missing, max(min(workers, len(missing)), 1)):
            progress.update(num_rooms)


def _write_shard(shard: Path, folders: Sequence[Path], options: QuestionOptions) -> int:
    """Write the records of some rooms, and return the number of rooms."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = []
    for folder in folders:
        with blame_file(folder, RENDER_AGAIN):
            records += _train_records(folder, options)
    table = pa.Table.from_pylist(records, schema=_schema())
    with replace_when_complete(shard) as temporary:
        pq.write_table(table, temporary)
    return len(folders)


def _train_records(folder: Path, options: QuestionOptions) -> list[dict]:
    description = read_description(folder)
    # Rooms of different seeds have the same names but are different scenes.
    scene_id = f"{folder.name}_seed{description['seed']}"
    records = []
    for views, numbers in _group(description, options):
        paths = [folder / "color" / f"{description['frames'][view]['frame']}.jpg" for view in views]
        room = read_ground_truth(folder, description, views, options.min_visible_share)
        asked = ask_room(room, numbers, options.seed, options.names, together=options.turns > 1)
        shown = _describe_objects(room)
        asked = [(number, _letter(question, number, description["seed"], options)) for number, question in asked]
        for start in range(0, len(asked), options.turns):
            turns = asked[start : start + options.turns]
            records.append(
                {
                    "id": f"{scene_id}_{turns[0][0] % options.questions_per_room}",
                    "images": [{"bytes": None, "path": str(path)} for path in paths],
                    "messages": _messages([question for _, question in turns], len(paths)),
                    "scene_id": scene_id,
                    "question_type": ",".join(question.question_type for _, question in turns),
                    "source": SOURCE,
                    "objects": shown,
                }
            )
    return records


def _letter(question: Question, number: int, room_seed: int, options: QuestionOptions) -> Question:
    """The question, or for a share of them the same with lettered options."""
    rng = np.random.default_rng([options.seed, room_seed, number, LETTERING])
    return with_options(question, rng) if rng.random() < options.lettered_share else question


def _describe_objects(room: RoomGroundTruth) -> list[dict]:
    """What views show of a room: each name once, where its object is, and when it is first seen."""
    return [{"name": each.name, "place": each.place, "first_view": each.first_view} for each in room.named_objects]


def _group(description: dict, options: QuestionOptions) -> list[tuple[list[int], range]]:
    """The views of a room that are shown together, each with the numbers of the questions about them."""
    first, num_frames = description["index"] * options.questions_per_room, len(description["frames"])
    numbers = range(first, first + options.questions_per_room)
    if options.num_views != 1:
        views = (
            training_views(num_frames) if options.num_views is None else spread_evenly(num_frames, options.num_views)
        )
        return [(views, numbers)]
    order = np.random.default_rng([options.seed, description["seed"], description["index"]]).permutation(num_frames)
    starts = range(0, len(numbers), options.turns)
    return [([int(order[i % num_frames])], numbers[start : start + options.turns]) for i, start in enumerate(starts)]


def _messages(questions: Sequence[Question], num_images: int) -> list[dict]:
    """Questions and answers in turn; the images stand before the first question."""
    messages = []
    for index, question in enumerate(questions):
        images = [{"type": "image", "text": None}] * num_images if index == 0 else []
        messages.append({"role": "user", "content": [*images, {"type": "text", "text": question.prompt}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": question.answer}]})
    return messages


def _write_benchmark(folders: Sequence[Path], output: Path, options: QuestionOptions, workers: int) -> None:
    if (output / "test.jsonl").exists():
        return
    lines = {}
    with tqdm(total=len(folders), desc="Asking about rooms", unit="room") as progress:
        for folder, text in call_in_processes(
            partial(_benchmark_lines, options=options), ((folder,) for folder in folders), min(workers, len(folders))
        ):
            lines[folder] = text
            progress.update()
    write_text(output / "test.jsonl", "".join(lines[folder] for folder in folders))


def _benchmark_lines(folder: Path, options: QuestionOptions) -> tuple[Path, str]:
    """A room's folder, and its lines of the benchmark."""
    with blame_file(folder, RENDER_AGAIN):
        return folder, _lines_about(folder, options)


def _lines_about(folder: Path, options: QuestionOptions) -> str:
    description = read_description(folder)
    room = read_ground_truth(folder, description, range(len(description["frames"])), options.min_visible_share)
    first = description["index"] * options.questions_per_room
    numbers = range(first, first + options.questions_per_room)
    lines = []
    for number, question in ask_room(room, numbers, options.seed, options.names):
        record = {
            "id": number,
            "dataset": SOURCE,
            "scene_name": folder.name,
            "question_type": question.question_type,
            "question": question.question,
            "ground_truth": question.answer,
            "options": question.options,
        }
        lines.append(json.dumps(record) + "\n")
    return "".join(lines)


def _read_shards(folder: Path) -> Iterator[tuple[str, Question]]:
    """Scene names and questions of an instruction set, shard by shard."""
    import pyarrow.parquet as pq

    for shard in sorted((folder / "data").glob("*.parquet")):
        for row in pq.read_table(shard, columns=["messages", "scene_id", "question_type"]).to_pylist():
            texts = [message["content"][-1]["text"] for message in row["messages"]]
            for family, prompt, answer in zip(row["question_type"].split(","), texts[::2], texts[1::2], strict=True):
                yield row["scene_id"].rpartition("_seed")[0], _read_question(family, prompt, answer)


def _read_question(family: str, prompt: str, answer: str) -> Question:
    if family in TRAINING_FAMILIES:
        return ShortQuestion(family, prompt, answer)
    question, options = parse_prompt(prompt)
    return Question(family, question, answer, options)


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
    made_with = read_json_object(manifest, "finish its instruction set with spa3r room-questions")
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
    for name in manifest["questions"]:
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
    parser.add_argument(
        "--families", nargs="+", default=["benchmark"], help=f"what to ask: {', '.join(GROUPS)}, or names of families"
    )
    parser.add_argument(
        "--views-per-question", type=int, help="views that a training question shows (default: 4 to 8)"
    )
    parser.add_argument("--turns", type=int, default=1, help="questions in a record, at most (default: %(default)s)")
    parser.add_argument(
        "--lettered-share",
        type=float,
        default=0.0,
        help="share of short questions with lettered options (default: %(default)s)",
    )
    parser.add_argument(
        "--min-visible-share",
        type=float,
        default=MIN_VISIBLE_SHARE,
        help="share of the image from which an object is clearly visible (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    given = vars(parser.parse_args(arguments))
    rooms, output, train, workers = (given.pop(name) for name in ("rooms", "output", "train", "workers"))
    options = QuestionOptions(**given | {"families": tuple(given["families"])})
    with only_run_in(output):
        print(format_table(write_questions(rooms, output, options, train, workers)))
