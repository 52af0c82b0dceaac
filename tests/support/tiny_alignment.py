"""Alignment of a tiny Spa3-VLM."""

from tiny_spa3_vlm import tiny_processor

from spa3r.trainers.alignment.align import build_trainer, run
from spa3r.trainers.alignment.arguments import parse_arguments

OPTIONS = {
    "held_out_scenes": 2,
    "min_views": 3,
    "max_views": 5,
    "images_per_device": 10,
    "eval_views": 4,
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": "true",
}


def command_line(vlm, rooms, output, **options):
    """Options of a short run; those that are None are left out."""
    options = {"model_name_or_path": vlm, "scenes": f"rooms:{rooms}", "output_dir": output} | OPTIONS | options
    return [str(part) for name, value in options.items() if value is not None for part in (f"--{name}", value)]


def build(*arguments, **options):
    """The trainer, the checkpoint that it continues from, and the options of the data."""
    data_args, args = parse_arguments(command_line(*arguments, **options))
    return *build_trainer(data_args, args), data_args


def align(*arguments, **options):
    trainer, checkpoint, data_args = build(*arguments, **options)
    run(trainer, checkpoint, data_args)
    return trainer


def save(model, folder, **processor):
    model.save_pretrained(folder)
    tiny_processor(**processor).save_pretrained(folder)
    return folder
