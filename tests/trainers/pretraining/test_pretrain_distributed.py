"""Pre-training in two processes: FSDP2 and ZeRO-2 end with the weights of plain data parallelism.

Runs use the launch files of configuration/accelerate on the CPU with gloo. NCCL, bfloat16 under DeepSpeed and the
memory of a GPU need other tests.
"""

import json
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from ready_processes import ReadyProcesses
from safetensors.torch import load_file
from transformers import AutoModel
from two_processes import needs_deepspeed, ready_processes

from spa3r import Spa3RForPreTraining
from spa3r.configuration import Spa3RConfig, load_preset

STEPS = 5
DECIMAL = r"-?\d+\.\d+"
# An epoch takes two steps: four scenes, one at a time in each of two processes.
RECIPE = {
    "preset": "spa3r-tiny",
    "untrained_teachers": True,
    "held_out_scenes": 2,
    "figures": 1,
    "image_width": 56,
    "min_views": 3,
    "max_views": 4,
    "images_per_device": 4,
    "eval_views": 4,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "gradient_accumulation_steps": 1,
    "logging_steps": 1,
    "max_steps": STEPS,
    # Above rounding: Adam would otherwise move an entry whose gradient is next to nothing by as much as any other.
    "adam_epsilon": 1e-4,
    "save_steps": 1,
    "save_total_limit": 10,
    "report_to": "none",
}
# Precision is fsdp2.yaml's own: autocast to bfloat16.
SHARDED = [("fsdp2", "bf16"), pytest.param(("zero2", "no"), marks=needs_deepspeed)]


@dataclass
class Run:
    """A run of two processes in a folder of its own."""

    topology: str
    processes: ReadyProcesses
    recipe: Path
    folder: Path

    def start(self):
        options = ["--config", self.recipe, "--output_dir", self.folder, "--use_cpu", self.topology == "ddp"]
        self.process = self.processes.start(["pretrain", *options], self.log)

    def finish(self):
        assert self.process.wait() == 0, self.log.read_text()
        return self

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def losses(self) -> list[float]:
        state = json.loads((self.folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
        return [float(entry["loss"]) for entry in state["log_history"] if "loss" in entry]

    def report(self) -> tuple[str, list[float]]:
        """The words of the report, and apart from them its measured numbers: those with a decimal point."""
        text = (self.folder / "report.md").read_text()
        words = re.sub(DECIMAL, "#", text)  # columns are as wide as their numbers
        return re.sub(r"[ -]+", " ", words), [float(number) for number in re.findall(DECIMAL, text)]

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, rooms):
    file = tmp_path_factory.mktemp("distributed") / "recipe.yaml"
    file.write_text(yaml.safe_dump(RECIPE | {"scenes": [f"rooms:{rooms}"]}))
    return file


@pytest.fixture(scope="module", params=SHARDED, ids=lambda param: param[0])
def runs(request, recipe):
    """A sharded run and one of plain data parallelism, which run at once."""
    topology, precision = request.param
    names, folder = (topology, "ddp"), recipe.parent / topology
    folder.mkdir()
    with ExitStack() as stack:
        ready = (stack.enter_context(ready_processes(name, folder / f"{name}_processes", precision)) for name in names)
        sharded, data_parallel = (Run(n, each, recipe, folder / n) for n, each in zip(names, ready, strict=True))
        sharded.start()
        data_parallel.start()
        yield sharded.finish(), data_parallel.finish()


@pytest.fixture
def sharded(runs):
    return runs[0]


@pytest.fixture
def data_parallel(runs):
    return runs[1]


def test_sharded_losses_are_those_of_data_parallelism(sharded, data_parallel):
    assert len(sharded.losses()) == STEPS
    assert sharded.losses() == pytest.approx(data_parallel.losses(), rel=1e-4)


def test_sharded_training_ends_with_the_weights_of_data_parallelism(sharded, data_parallel):
    expected = data_parallel.weights()
    weights = sharded.weights()
    assert set(weights) == set(expected)
    # Of whole tensors: Adam moves an entry whose gradient is next to nothing by as much as any other.
    for name, tensor in expected.items():
        assert (weights[name] - tensor).norm() <= 5e-3 * tensor.norm(), name


def test_model_of_a_sharded_run_loads_whole(sharded):
    _, info = Spa3RForPreTraining.from_pretrained(sharded.folder / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    model = AutoModel.from_pretrained(sharded.folder / "model").eval()
    assert model(torch.rand(1, 3, 3, 42, 56)).latents.isfinite().all()


def test_checkpoint_of_a_sharded_run_holds_what_trains(sharded):
    names = set(load_file(sharded.folder / f"checkpoint-{STEPS}" / "model.safetensors"))
    frozen = tuple(
        f"{name}." for name in Spa3RForPreTraining.from_pretrained(sharded.folder / "model").frozen_modules()
    )
    assert names == {name for name in sharded.weights() if not name.startswith(frozen)}


def test_sharded_model_is_evaluated_and_drawn_as_a_whole_one(sharded, data_parallel):
    words, numbers = sharded.report()
    expected_words, expected_numbers = data_parallel.report()
    assert words == expected_words
    # Each run rounds its own sums: a last digit may differ.
    assert numbers and numbers == pytest.approx(expected_numbers, rel=1e-3, abs=5e-4)
    assert [file.name for file in sharded.folder.glob(f"figures/step_{STEPS:06d}/*.png")]


def test_resumed_sharded_run_goes_on_within_an_epoch(sharded, tmp_path):
    resumed = Run(sharded.topology, sharded.processes, sharded.recipe, tmp_path / "resumed")
    shutil.copytree(sharded.folder, resumed.folder)
    for step in range(4, STEPS + 1):
        shutil.rmtree(resumed.folder / f"checkpoint-{step}")
    shutil.rmtree(resumed.folder / "model")
    resumed.start()
    resumed.finish()
    assert f"Continuing from {resumed.folder / 'checkpoint-3'}" in resumed.log.read_text()
    assert resumed.losses() == sharded.losses()
    expected = sharded.weights()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.weights().items())


LAYERS = {
    "spa3r-base": "DINOv3ViTLayer",
    "spa3r-base-clip": "CLIPEncoderLayer",
    "spa3r-base-siglip": "SiglipEncoderLayer",
}


@pytest.mark.parametrize(("preset", "layer"), LAYERS.items())
def test_layers_of_all_teachers_are_named_for_sharding(preset, layer):
    with torch.device("meta"):
        model = Spa3RForPreTraining(Spa3RConfig.from_dict(load_preset(preset)))
    assert {"Block", "Dinov2WithRegistersLayer", layer} <= model._no_split_modules
    # FSDP refuses a class that the model does not have.
    assert model._no_split_modules <= {type(module).__name__ for module in model.modules()}
