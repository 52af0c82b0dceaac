"""A tiny instruction set, and tuning of a tiny Spa3-VLM on it."""

import json

from datasets import Dataset, Image, List
from tiny_spa3_vlm import photo

from spa3r.trainers.tuning.sft import build_trainer, parse_arguments

NUM_RECORDS = 8


def message(role, text, num_images=0):
    return {"role": role, "content": [{"type": "image", "text": None}] * num_images + [{"type": "text", "text": text}]}


def write_instructions(folder, num_records=NUM_RECORDS):
    """Records with 0, 1 and 2 images, and answers of different lengths."""
    (folder / "data").mkdir(parents=True)
    records = []
    for index in range(num_records):
        paths = [folder / f"{index}_{view}.png" for view in range(index % 3)]
        for view, path in enumerate(paths):
            photo(10 * index + view, 48, 64 - 16 * (index % 2)).save(path)
        messages = [message("user", f"How many, {index}?", len(paths)), message("assistant", f"{index}" * (1 + index))]
        records.append({"images": [str(path) for path in paths], "messages": messages})
    dataset = Dataset.from_list(records).cast_column("images", List(Image()))
    dataset.to_parquet(folder / "data" / "00000.parquet")
    return folder


def command_line(vlm, instructions, output, **options):
    """Options of a short run on the CPU; those that are None are left out."""
    defaults = {
        "model_name_or_path": vlm,
        "instructions": instructions,
        "output_dir": output,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": "1e-3",
        "logging_steps": 1,
        "save_steps": 1,
        "report_to": "none",
        "use_cpu": "true",
        "bf16": "false",
    }
    options = {name: value for name, value in (defaults | options).items() if value is not None}
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


def trainer_of(vlm, instructions, output, *callbacks, **options):
    trainer = build_trainer(*parse_arguments(command_line(vlm, instructions, output, **options)))
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def losses(output, name="loss"):
    """The values logged under a name up to the last checkpoint."""
    (state,) = sorted(output.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)[-1:]
    return [float(entry[name]) for entry in json.loads(state.read_text())["log_history"] if name in entry]
