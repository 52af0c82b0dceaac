"""Kill every verb that writes at random moments, run the same command again, and compare all bytes it leaves.

    python tests/kills/campaign.py --kills 48 --seed 0

Prints a row for each verb: how often it was killed, when, and the files that differ from an uninterrupted run's.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "support")]

import torch  # noqa: E402
import yaml  # noqa: E402
from instruction_records import question, write_image, write_lines  # noqa: E402
from killing import KILLED, Ended, bytes_of, differences, draw_moment, run, run_verb  # noqa: E402
from tiny_alignment import OPTIONS as ALIGN  # noqa: E402
from tiny_instructions import command_line, write_instructions  # noqa: E402
from tiny_pretraining import TINY_RECIPE  # noqa: E402
from tiny_spa3_vlm import answering_model, tiny_processor  # noqa: E402
from tiny_videos import write_video  # noqa: E402

from spa3r import Spa3RForPreTraining  # noqa: E402
from spa3r.configuration import Spa3RConfig, load_preset  # noqa: E402

# What tells when a run was made: times of a run's end, of the world's stages, and logs of all tries.
TIMED = ("trainer_state.json", "training_args.bin", "all_results.json", "train_results.json", "logs/*", "done/*")
TRAINING = {"max_steps": 6, "save_steps": 2, "logging_steps": 1, "report_to": "none", "use_cpu": True}
TEACHING = TRAINING | {
    "preset": "spa3-vlm-tiny",
    "held_out_scenes": 1,
    "image_width": 56,
    "from_scratch": True,
    "min_views": 4,
    "max_views": 4,
    "images_per_device": 8,
}


@dataclass(frozen=True)
class Case:
    """A command that writes: its verb, and its arguments given the folder of inputs and that of its output."""

    verb: str
    arguments: Callable[[Path, Path], list]
    is_heavy: bool = False

    def command(self, inputs: Path, output: Path) -> list[str]:
        return [self.verb, *map(str, self.arguments(inputs, output))]


def recipe(verb: str, name: str, options: dict) -> Case:
    """A training from a recipe that `make_inputs` writes."""
    RECIPES[name] = options
    return Case(verb, lambda inputs, output: ["--config", inputs / f"{name}.yaml", "--output_dir", output])


def options_of(options: dict) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


RECIPES: dict[str, dict] = {}
CASES = {
    "rooms": Case(
        "rooms", lambda i, o: [*"--scenes 4 --views 4 --size 56x42 --seed 3 --workers 1 --output".split(), o]
    ),
    "rooms, 2 workers": Case(
        "rooms", lambda i, o: [*"--scenes 4 --views 4 --size 56x42 --seed 3 --workers 2 --output".split(), o]
    ),
    "room-questions": Case(
        "room-questions",
        lambda i, o: ["--rooms", i / "rooms", "--output", o, "--questions-per-room", 6, "--workers", 1],
    ),
    "room-questions, benchmark": Case(
        "room-questions", lambda i, o: ["--rooms", i / "rooms", "--output", o, "--format", "benchmark", "--workers", 1]
    ),
    "convert-data": Case(
        "convert-data",
        lambda i, o: [
            *("vsi590k", "--input", i / "records.jsonl", "--media-root", i / "media", "--output", o),
            *("--workers", 1, "--no-exclude"),
        ],
    ),
    "convert": Case(
        "convert", lambda i, o: ["assemble", "--vlm", "spa3-vlm-tiny", "--spa3r", i / "spa3r", "--image-width", 56, o]
    ),
    "scenes": Case("benchmark-scenes", lambda i, o: ["--files", i / "scenes.txt", "--output", o / "scenes.txt"]),
    "teach geometry": recipe("teach", "geometry", TEACHING | {"teacher": "geometry"}),
    "teach semantic": recipe("teach", "semantic", TEACHING | {"teacher": "semantic"}),
    "pretrain": recipe("pretrain", "pretrain", TINY_RECIPE | TRAINING | {"figures": 1, "eval_steps": 3}),
    "align": Case(
        "align",
        lambda i, o: options_of(
            {"model_name_or_path": i / "vlm", "scenes": f"rooms:{i / 'rooms'}", "output_dir": o} | ALIGN
        ),
    ),
    "encode-scenes": Case(
        "encode-scenes", lambda i, o: ["--model", i / "vlm", "--instructions", i / "instructions", "--output", o]
    ),
    "sft": Case("sft", lambda i, o: command_line(i / "vlm", i / "instructions", o, save_steps=2)),
    "benchmark": Case(
        "benchmark",
        lambda i, o: [
            *("--model", i / "vlm", "--benchmark", "rooms", "--data", i / "questions", "--media", i / "rooms"),
            *("--output", o, "--limit", 8),
        ],
    ),
    "inspect": Case(
        "inspect",
        lambda i, o: [
            *("--model", i / "spa3r", "--scenes", f"rooms:{i / 'rooms'}", "--num-views", 4, "--image-width", 56),
            *("--num-scenes", 3, "--num-figures", 2, "--device", "cpu", "--output", o),
        ],
    ),
    "world": Case("world", lambda i, o: ["--smoke", "--output", o], is_heavy=True),
}


def make_inputs(inputs: Path):
    """Rooms, questions, models, records and recipes that the verbs read."""
    log = inputs / "inputs.log"
    for arguments in (
        ["rooms", "--scenes", 5, "--views", 8, "--size", "56x42", "--workers", 1, "--output", inputs / "rooms"],
        [
            *("room-questions", "--rooms", inputs / "rooms", "--output", inputs / "questions"),
            *("--format", "benchmark", "--workers", 1),
        ],
    ):
        assert run_verb(arguments, inputs, log).status == 0, log.read_text()
    make_records(inputs)
    torch.manual_seed(0)
    Spa3RForPreTraining(Spa3RConfig.from_dict(load_preset("spa3r-tiny"))).save_pretrained(inputs / "spa3r")
    answering_model().save_pretrained(inputs / "vlm")
    tiny_processor().save_pretrained(inputs / "vlm")
    write_instructions(inputs / "instructions")
    for name, options in RECIPES.items():
        (inputs / f"{name}.yaml").write_text(yaml.safe_dump({"scenes": [f"rooms:{inputs / 'rooms'}"]} | options))


def make_records(inputs: Path):
    """Records of a published instruction set with their media, and a list of scenes."""
    write_video(inputs / "media" / "clips" / "a.mp4")
    records = []
    for number in range(6):
        write_image(inputs / "media" / "hypersim" / f"{number}.jpg", (40 * number,) * 3)
        records.append(question(image=f"hypersim/{number}.jpg"))
    write_lines(inputs / "records.jsonl", [*records, question(video="clips/a.mp4")])
    (inputs / "scenes.txt").write_text("scene0011_00\nscene0015_00\n")


def interrupt(case: Case, inputs: Path, output: Path, rng: random.Random, whole: Ended, num_kills: int) -> list[str]:
    """Kill a command, again after each kill, and then let it end; describes the kills, and a failure."""
    story, log = [], output.with_name("log.txt")
    command = case.command(inputs, output)
    for _ in range(num_kills):
        moment = draw_moment(rng, whole, 1 / num_kills)
        ended = run_verb(command, output, log, moment)
        story.append(str(moment) + ("" if ended.status == KILLED else f" (it had ended with {ended.status})"))
    ended = run_verb(command, output, log)
    if ended.status != 0:
        story.append(f"FAILS with {ended.status}: {' '.join(log.read_text(errors='replace').splitlines()[-3:])}")
    return story


def run_case(case: Case, inputs: Path, folder: Path, rng: random.Random, num_kills: int) -> tuple[list, list[str]]:
    """Kill a command in as many runs, or a heavy one as often in a single run; returns the kills, and what differs."""
    output, log = folder / "output", folder / "whole.log"
    prepare(output, case)
    whole = run_verb(case.command(inputs, output), output, log)
    assert whole.status == 0, log.read_text(errors="replace")[-3000:]
    expected = bytes_of(output, TIMED)
    stories, wrong = [], []
    for _ in range(1 if case.is_heavy else num_kills):
        shutil.rmtree(output)
        prepare(output, case)
        story = interrupt(case, inputs, output, rng, whole, num_kills if case.is_heavy else 1)
        changed = differences(expected, bytes_of(output, TIMED))
        stories += story
        if changed or any("FAILS" in part for part in story):
            wrong.append(f"{'; '.join(story)}: {', '.join(sorted(changed)[:8])}")
    return stories, wrong


def prepare(output: Path, case: Case):
    if case.verb == "benchmark-scenes":
        output.mkdir(parents=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=48, help="at least so many, over all verbs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    per_case = -(-options.kills // len(options.only))
    failed = False
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        inputs = Path(folder) / "inputs"
        inputs.mkdir()
        assert run(lambda: make_inputs(inputs), inputs, inputs / "log.txt").status == 0, (
            inputs / "log.txt"
        ).read_text()
        print("| command | kills | killed at | differs |\n|---|---:|---|---|", flush=True)
        for name in options.only:
            case, rng = CASES[name], random.Random(f"{options.seed}/{name}")
            place = Path(folder) / name.replace(" ", "_")
            place.mkdir()
            stories, wrong = run_case(case, inputs, place, rng, per_case)
            failed |= bool(wrong)
            print(f"| {name} | {len(stories)} | {'; '.join(stories)} | {'; '.join(wrong) or 'nothing'} |", flush=True)
            shutil.rmtree(place)
    sys.exit(failed)


if __name__ == "__main__":
    main()
