"""Speed of instruction tuning: a step from cached latents against a live one, and whether the loader keeps up.

    python tests/benchmarks/bench_sft.py --output runs/bench_sft.json
    python tests/benchmarks/bench_sft.py --preset base --device cuda --dtype bfloat16 --workers 8

Steps are those of `spa3r sft` in its own loop, one record a step: from the batch to the updated weights, activations
checkpointed. The learning rate is 0, so that all steps are of the same weights; a difference between the losses of
both ways is refused. Records are photos of 640 x 480 pixels as JPEG files, and 100 characters of text. Weights are
random. `measuring.py` says how time is taken; waiting is time passed.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_spa3_vlm import PRESETS, build_model, make_processor
from bench_spa3r import TOLERANCE
from datasets import Dataset, Image, List
from measuring import (
    make_model_parser,
    parse_model_options,
    print_table,
    shares,
    synchronize,
    write_figures,
)
from PIL import Image as PILImage
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback
from trl import SFTTrainer

from spa3r.trainers.tuning.instruction_data import load_instructions, open_images
from spa3r.trainers.tuning.scene_cache import encode_scenes
from spa3r.trainers.tuning.sft import build_trainer, parse_arguments

NUM_RECORDS = 4
# Of each stretch of training; ways take turns between stretches.
STEPS = 2
QUESTION = "These are frames of a video. How many chairs are there in the room, the two by the window not counted?"
# As in the recipes.
RECIPE_WORKERS = 8


class StepClock(TrainerCallback):
    """Seconds of each step, and of what lies between two steps, where the loop waits for the next batch."""

    def __init__(self, device: torch.device):
        self.device = device
        # Of this process alone on a CPU: its loader's workers compute beside it.
        self.clock = time.process_time if device.type == "cpu" else time.perf_counter
        self.steps, self.passed, self.waits = [], [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self.ended = None

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun, self.begun_by_clock = time.perf_counter(), self.clock()
        if self.ended is not None:
            self.waits.append(self.begun - self.ended)

    def on_step_end(self, args, state, control, **kwargs):
        synchronize(self.device)
        self.ended = time.perf_counter()
        self.steps.append(self.clock() - self.begun_by_clock)
        self.passed.append(self.ended - self.begun)


def write_instructions(folder: Path, views: int):
    """Records of as many photos, smooth as real ones are: 90 kB each."""
    (folder / "data").mkdir(parents=True)
    records = []
    for index in range(NUM_RECORDS):
        paths = [folder / f"{index}_{view}.jpg" for view in range(views)]
        for view, path in enumerate(paths):
            pixels = np.random.default_rng([index, view]).integers(0, 256, (30, 40, 3), dtype=np.uint8)
            PILImage.fromarray(pixels).resize((640, 480), PILImage.Resampling.BICUBIC).save(path, quality=95)
        content = [{"type": "image", "text": None}] * views + [{"type": "text", "text": QUESTION}]
        answer = [{"type": "text", "text": f"{index}"}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        records.append({"images": [str(path) for path in paths], "messages": messages})
    dataset = Dataset.from_list(records).cast_column("images", List(Image()))
    dataset.to_parquet(folder / "data" / "00000.parquet")


def build_trainers(folder: Path, options: argparse.Namespace) -> dict[str, SFTTrainer]:
    """Trainers of the same model on the same records: live, and from what was kept of scenes."""
    instructions, model_folder, latents, seen = (
        folder / name for name in ("instructions", "model", "latents", "seen")
    )
    write_instructions(instructions, options.views)
    processor, model = make_processor(options), build_model(options)
    processor.save_pretrained(model_folder)
    model.save_pretrained(model_folder)
    dataset = load_instructions([str(instructions)], seed=0)
    encode_scenes(model, processor, dataset, latents)
    encode_scenes(model, processor, dataset, seen, vision_features=True)
    del model
    arguments = {
        "model_name_or_path": model_folder,
        "instructions": instructions,
        "output_dir": folder / "run",
        "max_steps": STEPS,
        "per_device_train_batch_size": 1,
        "learning_rate": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": "true",
        "dtype": str(options.dtype).removeprefix("torch."),
        "bf16": str(options.dtype is torch.bfloat16).lower(),
        "use_cpu": str(options.device.type == "cpu").lower(),
    }
    trainers = {}
    ways = {"from latents": latents, "from latents and vision features": seen}
    for name, changes in {"live": {}, **{way: {"scene_latents": kept} for way, kept in ways.items()}}.items():
        given = [str(part) for key, value in (arguments | changes).items() for part in (f"--{key}", value)]
        trainers[name] = build_trainer(*parse_arguments(given))
        trainers[name].remove_callback(PrinterCallback)
    return trainers


def train(trainer: SFTTrainer, device: torch.device) -> tuple[StepClock, list[float]]:
    """A stretch of training, and its losses."""
    clock = StepClock(device)
    trainer.add_callback(clock)
    trainer.train()
    trainer.remove_callback(clock)
    return clock, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def refuse_difference(losses: dict[str, list[float]]):
    """Refuse to compare the cost of losses that differ."""
    live, *cached = (torch.tensor(values, dtype=torch.float64) for values in losses.values())
    if (error := ((torch.stack(cached) - live).abs() / live).max().item()) > TOLERANCE:
        raise RuntimeError(f"Losses from latents differ from live ones by {error:.1e}; there is nothing to compare.")


def bench_steps(trainers: dict[str, SFTTrainer], options: argparse.Namespace) -> dict[str, Any]:
    """Steps of each way, in turns, without workers; the first stretch of each warms up."""
    seconds = {name: [] for name in trainers}
    with tqdm(total=(1 + options.repeats) * len(trainers), desc="Steps", unit="stretch", leave=False) as progress:
        for repeat in range(1 + options.repeats):
            losses = {}
            for name, trainer in trainers.items():
                clock, losses[name] = train(trainer, options.device)
                seconds[name] += clock.steps if repeat else []
                progress.update()
            refuse_difference(losses)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        {"variant": name, "seconds": medians[name], "speedup": medians["live"] / medians[name], "all_seconds": values}
        for name, values in seconds.items()
    ]
    return {"views": options.views, "losses": losses, "rows": rows}


def load_record(trainer: SFTTrainer, index: int) -> dict[str, float]:
    """Processor seconds of what a worker does for one record, part by part."""
    start = time.process_time()
    record = trainer.train_dataset[index]
    read = time.process_time()
    trainer.processing_class.image_processor(open_images(record["images"]), return_tensors="pt")
    prepared = time.process_time()
    trainer.data_collator([record])
    collated = time.process_time() - prepared
    images = prepared - read
    return {"read and decode": read - start, "images": images, "text, labels": collated - images}


def bench_loader(trainers: dict[str, SFTTrainer], options: argparse.Namespace) -> dict[str, Any]:
    """One core's time for a record, and from it what the recipes' workers can give."""
    trainer = trainers["live"]
    records = [load_record(trainer, index % NUM_RECORDS) for index in range(NUM_RECORDS * (1 + options.repeats))]
    rows = shares(records[NUM_RECORDS:])
    seconds = rows[-1]["seconds"]
    return {
        "rows": rows,
        "seconds_per_record": seconds,
        "workers_of_recipes": RECIPE_WORKERS,
        "records_per_second_of_recipes_workers": RECIPE_WORKERS / seconds,
        "shortest_step_seconds": seconds / RECIPE_WORKERS,
    }


def bench_waiting(trainers: dict[str, SFTTrainer], options: argparse.Namespace) -> dict[str, Any]:
    """How much of the loop's time is spent between steps, where it waits for batches of the workers."""
    rows = []
    for name, trainer in tqdm(trainers.items(), desc="Waiting", unit="stretch", leave=False):
        trainer.args.dataloader_num_workers = options.workers
        clock, _ = train(trainer, options.device)
        # The first batch, for which the workers must start, is not waited for between steps.
        total = sum(clock.waits) + sum(clock.passed[1:])
        rows.append({"variant": name, "seconds": sum(clock.waits), "share": sum(clock.waits) / total})
    return {"workers": options.workers, "steps": STEPS, "rows": rows}


def parse_options() -> argparse.Namespace:
    parser = make_model_parser(__doc__, PRESETS, repeats=2)
    parser.add_argument("--views", type=int, default=8, help="photos of a record")
    parser.add_argument("--width", type=int, default=518, help="that photos are resized to, in pixels")
    parser.add_argument("--workers", type=int, default=1, help="of the loader, where waiting is measured")
    return parse_model_options(parser)


def main():
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        trainers = build_trainers(Path(folder), options)
        loader = bench_loader(trainers, options)
        print_table(f"Loading a record of {options.views} photos, one core", loader["rows"])
        print(
            f"{RECIPE_WORKERS} workers, with a core each: {loader['records_per_second_of_recipes_workers']:.0f} "
            f"records a second; steps of more than {loader['shortest_step_seconds']:.3f} s do not wait."
        )

        steps = bench_steps(trainers, options)
        title = f"A training step, {options.views} photos, all with the same losses"
        print_table(title, steps["rows"])

        waiting = bench_waiting(trainers, options)
        print_table(f"Waiting between steps, {options.workers} workers", waiting["rows"])
    write_figures(options, loader=loader, steps=steps, waiting=waiting)


if __name__ == "__main__":
    main()
