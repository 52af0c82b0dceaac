"""Turn trained nano models into the checkpoints that ship with the package.

    python -m spa3r.trainers.world.shipping runs/world/spa3r/model runs/world/nano/spa3r-nano
    python -m spa3r.trainers.world.shipping runs/world/tuned/model runs/world/nano/spa3-vlm-nano \
        --reports runs/world/benchmark-tuned runs/world/benchmark-text

Weights are stored in bfloat16 and loaded in float32, with cards that state data, scores and how to make them again,
and without any path of this machine. `spa3r.nano_path` finds what stands in `modeling_spa3r/nano`.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel

from ...configuration.configuration_spa3r import Spa3RConfig
from ...data_scripts.common.files import new_folder, require_empty_folder, write_json
from ...modeling_spa3r.checkpoints.cards import CARD, Score, parts_of, spa3_vlm_card, spa3r_card, write_card
from ...modeling_spa3r.checkpoints.loading import (
    load_config,
    load_processor,
    load_spa3_vlm,
    load_whole,
    require_checkpoint,
)
from ...modeling_spa3r.spa3r.modeling_spa3r import Spa3RForPreTraining
from ..runs.errors import run_module

# What the cards of all shipped models add to those of their training.
FACTS = {
    "license": "apache-2.0",
    "again": "`spa3r world` makes it from nothing, with its teachers and its data, which are rendered rooms.",
}
TAUGHT = "on rendered rooms, by `spa3r teach`"


def ship_spa3r(source: str, output: Path):
    """Write a pre-trained Spa3R with its decoder and its teachers.

    Args:
        source (`str`): Folder that `spa3r pretrain` has written.
        output (`Path`): New or empty folder.
    """
    model = load_whole(Spa3RForPreTraining, source).to(torch.bfloat16)
    _forget_origins(model.config)
    earlier = _read_card(source)
    card = spa3r_card(output.name, model.config, earlier["training"], earlier["evaluation"])
    with new_folder(output) as folder:
        _save(model, folder)
        AutoImageProcessor.from_pretrained(source).save_pretrained(folder)
        write_card(folder, card | FACTS | {"taught": TAUGHT, "started_from": None})


def ship_spa3_vlm(source: str, output: Path, reports: Sequence[Path]):
    """Write an instruction-tuned Spa3-VLM.

    Args:
        source (`str`): Folder that `spa3r sft` has written.
        output (`Path`): New or empty folder.
        reports (`Sequence[Path]`): Folders of `spa3r benchmark`: its scores, and those of its controls.
    """
    model = load_spa3_vlm(source, dtype=torch.bfloat16)
    model.config.vlm_config.name_or_path = ""
    _forget_origins(model.config.spatial_config)
    lines = [_without_folders(line) for line in _read_card(source)["training_data"]]
    parts = parts_of(model.config)
    scores = [read_score(report) for report in reports]
    card = spa3_vlm_card(output.name, model.config, dict.fromkeys(parts), parts, lines, scores)
    with new_folder(output) as folder:
        _save(model, folder)
        load_processor(source).save_pretrained(folder)
        write_card(folder, card | FACTS)


def read_score(report: Path) -> Score:
    """Read the overall score of a report, with its interval."""
    content = json.loads((report / "report.json").read_text(encoding="utf-8"))
    overall = content["columns"][0]
    value, low, high = (100 * overall[name] for name in ("value", "low", "high"))
    benchmark = f"{content['benchmark']}, {content['num_scenes']} held-out: {content['label']}"
    return Score(benchmark, content["protocol"], f"{value:.1f} % ({low:.1f} to {high:.1f})")


def _save(model: PreTrainedModel, folder: Path):
    """Save weights in their type, but have them loaded in float32: many CPUs are slow in bfloat16."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", _in_float32(config))


def _in_float32(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {name: "float32" if name == "dtype" else _in_float32(value) for name, value in config.items()}


def _forget_origins(config: Spa3RConfig):
    """Leave out where the frozen teachers came from: they are inside."""
    config.name_or_path = ""
    config.vggt_checkpoint, config.teachers_included = None, True
    for teacher in config.teachers.values():
        teacher["checkpoint"] = None


def _read_card(source: str) -> Mapping[str, Any]:
    return json.loads((Path(source) / CARD).read_text(encoding="utf-8"))


def _without_folders(line: str) -> str:
    """Name each folder by its last part: paths of this machine mean nothing elsewhere."""
    return re.sub(r"`([^`]*/)?([^`/]+)`", r"`\2`", line)


def main(arguments: Sequence[str] | None = None):
    """Write a checkpoint; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="trained model: a Spa3R with its teachers, or a Spa3-VLM")
    parser.add_argument("output", type=Path, help="new or empty folder, of the name that the model ships by")
    parser.add_argument("--reports", type=Path, nargs="+", default=[], help="benchmarks of it and of its controls")
    options = parser.parse_args(arguments)
    require_empty_folder(options.output)
    require_checkpoint(options.source)
    if load_config(AutoConfig, options.source).model_type == Spa3RConfig.model_type:
        ship_spa3r(options.source, options.output)
    else:
        ship_spa3_vlm(options.source, options.output, options.reports)
    size = sum(file.stat().st_size for file in options.output.iterdir())
    print(f"Wrote {options.output}: {size / 1e6:.1f} MB.")


if __name__ == "__main__":
    run_module(main, "spa3r.trainers.world.shipping")
