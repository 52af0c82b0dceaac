"""Instruction tuning in two processes: every topology takes the steps of plain data parallelism.

Batches differ between processes in their number of scenes and views, down to none. NCCL and bfloat16 under DeepSpeed
need other tests.
"""

import json
import shutil
from contextlib import ExitStack
from functools import cache

import pytest
import torch
from datasets import load_dataset
from safetensors.torch import load_file
from terminal import verb
from tiny_instructions import command_line, losses, write_instructions
from tiny_spa3_vlm import tiny_model, tiny_processor
from transformers import AutoModelForImageTextToText
from two_processes import launch_on_two_nodes, needs_deepspeed, ready_processes

from spa3r.configuration import load_preset

STEPS = 4
SHARDED_NAMES = {"fsdp2", "zero2", "zero3"}
SHARDED = ["fsdp2", pytest.param("zero2", marks=needs_deepspeed), pytest.param("zero3", marks=needs_deepspeed)]


def tied_model():
    """A model whose head is its embedding, as that of Qwen2.5-VL-3B."""
    vlm_config = load_preset("spa3-vlm-tiny")["vlm_config"] | {"tie_word_embeddings": True}
    return tiny_model(vlm_config=vlm_config, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models, an instruction set, and latents of it."""
    folder = tmp_path_factory.mktemp("sft_distributed")
    write_instructions(folder / "set")
    for name, model in {"vlm": tied_model(), "with_head": tiny_model()}.items():
        model.save_pretrained(folder / name)
        tiny_processor().save_pretrained(folder / name)
    command = ["--model", folder / "vlm", "--instructions", folder / "set", "--output", folder / "latents"]
    verb("encode-scenes")(command)
    return folder


@pytest.fixture(scope="module")
def processes(place):
    """Two processes that wait for runs, started once for each topology."""
    with ExitStack() as ready:
        yield cache(lambda topology: ready.enter_context(ready_processes(topology, place / f"{topology}_processes")))


@pytest.fixture(scope="module")
def run(place, processes):
    """Runs two processes, once for each topology and model, and returns the folder of the run."""

    def start(topology, vlm="vlm", name=None, instructions="set", **options):
        output = place / (name or f"{topology}_{vlm}")
        if not output.with_suffix(".log").exists():
            options = {"eval_instructions": place / "set", "eval_strategy": "steps", "eval_steps": 2} | options
            options |= {"per_device_train_batch_size": 1, "max_steps": STEPS}
            options |= {"use_cpu": None} if topology in SHARDED_NAMES else {}
            log = output.with_suffix(".log")
            arguments = ["sft", *command_line(place / vlm, place / instructions, output, **options)]
            is_slurm = topology == "nodes"
            process = launch_on_two_nodes(arguments, log) if is_slurm else processes(topology).start(arguments, log)
            assert process.wait() == 0, log.read_text()
        return output

    return start


def weights(output):
    return load_file(output / "model" / "model.safetensors")


@pytest.mark.parametrize("topology", SHARDED)
@pytest.mark.parametrize("logged", ["loss", "grad_norm", "eval_loss"])
def test_steps_are_those_of_data_parallelism(topology, logged, run):
    expected = losses(run("ddp"), logged)
    assert len(expected) == (2 if logged == "eval_loss" else STEPS)
    assert losses(run(topology), logged) == pytest.approx(expected, rel=1e-3)


def test_names_are_grounded_in_two_processes(place, run):
    # Half of the records name an object, so that at times one process has no name to read.
    records = load_dataset("parquet", data_dir=str(place / "set" / "data"), split="train")
    objects = [[{"name": "many", "place": [1.0, 2.0, 3.0], "first_view": 0.0}], None] * (len(records) // 2)
    (place / "grounded" / "data").mkdir(parents=True)
    records.add_column("objects", objects).to_parquet(place / "grounded" / "data" / "0.parquet")
    options = {"instructions": "grounded", "grounding_weight": 1, "activation_checkpointing": "false"}
    assert len(losses(run("ddp", name="ddp_grounded", **options), "loss_place")) == STEPS


def test_two_nodes_take_the_steps_of_two_processes_of_one_node(run):
    assert losses(run("nodes")) == losses(run("ddp"))
    assert json.loads((run("nodes") / "run.json").read_text())["world_size"] == 2


def test_a_head_of_its_own_learns_from_all_processes_under_fsdp2(run):
    # TRL reads its weight without calling it.
    runs = [run(topology, "with_head") for topology in ("ddp", "fsdp2")]
    assert losses(runs[1], "grad_norm") == pytest.approx(losses(runs[0], "grad_norm"), rel=1e-3)


@pytest.mark.parametrize("topology", SHARDED)
def test_the_model_has_the_weights_of_data_parallelism_under_the_same_names(topology, run):
    expected, result = weights(run("ddp")), weights(run(topology))
    assert set(result) - {"lm_head.weight"} == set(expected) - {"lm_head.weight"}
    # Of whole tensors: Adam moves an entry whose gradient is next to nothing by as much as any other.
    for name, tensor in expected.items():
        assert (result[name] - tensor).norm() <= 5e-3 * tensor.norm() + 1e-3, name


@pytest.mark.parametrize("topology", ["ddp", *SHARDED])
def test_frozen_parts_keep_their_bits_and_others_change(topology, run):
    before, after = tied_model().state_dict(), weights(run(topology))
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if ".visual." in name or ".spatial_encoder." in name]
    assert {"fusion", "vlm"} <= {name.split(".")[1] for name in changed}


@pytest.mark.parametrize("topology", SHARDED)
def test_checkpoint_and_model_load_whole(topology, run):
    for folder in (f"checkpoint-{STEPS}", "model"):
        model, info = AutoModelForImageTextToText.from_pretrained(run(topology) / folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("topology", ["fsdp2", pytest.param("zero3", marks=needs_deepspeed)])
def test_latents_that_were_encoded_before_make_the_same_steps(topology, place, run):
    cached = run(topology, name=f"{topology}_cached", scene_latents=place / "latents")
    assert losses(cached) == pytest.approx(losses(run(topology)), rel=1e-5)


@pytest.mark.parametrize("topology", SHARDED)
def test_a_resumed_run_ends_with_the_same_bits(topology, run, place):
    whole, resumed = run(topology), place / f"{topology}_resumed"
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "model")
    (resumed / f"checkpoint-{STEPS}" / "complete.json").unlink()  # as of a run that was killed while it wrote this
    run(topology, name=resumed.name)
    assert f"Continuing from {resumed / f'checkpoint-{STEPS - 1}'}" in resumed.with_suffix(".log").read_text()
    assert losses(resumed) == losses(whole)
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items())


def test_more_processes_than_records_are_refused(place, processes):
    write_instructions(place / "few", num_records=2)
    data = load_dataset("parquet", data_files=str(place / "few" / "data" / "*.parquet"), split="train")
    data.select([1]).to_parquet(place / "few" / "data" / "00000.parquet")
    log = place / "few.log"
    options = command_line(place / "vlm", place / "few", place / "few_run")
    assert processes("ddp").start(["sft", *options], log).wait() != 0
    assert "spa3r sft: `instructions` hold 1 records for 2 processes" in log.read_text()


def test_two_processes_share_the_encoding_of_scenes(place, processes):
    command = [
        "encode-scenes",
        "--model",
        place / "vlm",
        "--instructions",
        place / "set",
        "--output",
        place / "shared_out",
    ]
    log = place / "encode.log"
    assert processes("ddp").start(command, log).wait() == 0, log.read_text()
    (expected,) = map(load_file, (place / "latents").glob("*.safetensors"))
    shards = [load_file(file) for file in (place / "shared_out").glob("*.safetensors")]
    assert [len(shard) for shard in shards] in ([2, 3], [3, 2])
    result = shards[0] | shards[1]
    assert result.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in result.items())
