"""The calculated memory of instruction tuning against the tensors that small runs hold."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import sft_memory
from benchmarks.memory_tracking import peak_memory
from datasets import Dataset, Image, List
from tiny_instructions import message, trainer_of
from tiny_spa3_vlm import photo, tiny_processor
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback
from two_processes import needs_deepspeed

from spa3r import Spa3VLMForConditionalGeneration
from spa3r.configuration import Spa3VLMConfig, load_preset

REPOSITORY = Path(__file__).resolve().parents[3]
LORA = {
    "use_peft": "true",
    "lora_r": 32,
    "lora_target_modules": r"model\.vlm\.language_model\..*\.(q_proj|v_proj|down_proj)",
    "lora_modules_to_save": "fusion",
}


def build_model(hidden_size: int, num_heads: int) -> Spa3VLMForConditionalGeneration:
    """A tiny model but for its language model, of heads as large as Qwen's."""
    preset = load_preset("spa3-vlm-tiny")
    preset["vlm_config"]["vision_config"]["out_hidden_size"] = hidden_size
    preset["vlm_config"]["text_config"] |= {
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    return Spa3VLMForConditionalGeneration(Spa3VLMConfig(**preset))


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """Its matrices are not so small that ZeRO-3 does not share them."""
    folder = tmp_path_factory.mktemp("vlm")
    build_model(512, num_heads=4).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def instructions(tmp_path_factory):
    """Records of one image each."""
    folder = tmp_path_factory.mktemp("instructions")
    (folder / "data").mkdir()
    records = []
    for index in range(4):
        path = folder / f"{index}.png"
        photo(index).save(path)
        records.append({"images": [str(path)], "messages": [message("user", "How?", 1), message("assistant", "1")]})
    dataset = Dataset.from_list(records).cast_column("images", List(Image()))
    dataset.to_parquet(folder / "data" / "00000.parquet")
    return folder


class CountBytes(TrainerCallback):
    """What a trainer in this process holds before its second step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        tensors = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
        states = (value for values in optimizer.state.values() for value in values.values())
        tensors += [value for value in states if value.ndim > 0]
        self.held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("options", [{}, LORA], ids=["full", "lora"])
def test_weights_gradients_and_states_of_one_process_are_as_calculated(options, vlm, instructions, tmp_path):
    counter = CountBytes()
    options = {"dtype": "bfloat16", "bf16": "true", "max_steps": 2, "save_strategy": "no"} | options
    trainer = trainer_of(vlm, instructions, tmp_path, counter, **options)
    sizes = sft_memory.measure(trainer.model)
    trainer.train()
    assert counter.held == sft_memory.plain(sizes, 1).always


@pytest.mark.parametrize(
    "topology, dtype, elsewhere",
    [
        # DeepSpeed takes bfloat16 on accelerators alone; the terms are the same in float32.
        pytest.param("zero2", "float32", 0, marks=needs_deepspeed),
        pytest.param("zero3", "float32", 4 * sft_memory.REDUCE_BUCKET, marks=needs_deepspeed),
        ("fsdp2", "bfloat16", 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_two_processes_hold_is_as_calculated(topology, dtype, elsewhere, vlm, instructions, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    command += ["--config_file", f"configuration/accelerate/{topology}.yaml"]
    command += ["--mixed_precision", "bf16" if dtype == "bfloat16" else "no", "tests/support/memory_launcher.py"]
    options = {
        "model_name_or_path": vlm,
        "instructions": instructions,
        "output_dir": tmp_path,
        "dtype": dtype,
        "bf16": "false",
        "max_steps": 2,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
    }
    command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (alive,) = re.findall(r"bytes alive: (\d+)", run.stdout)
    model = Spa3VLMForConditionalGeneration.from_pretrained(vlm, dtype=dtype)
    model.freeze_encoders()
    need = getattr(sft_memory, topology)(sft_memory.measure(model), 2)
    # Besides, there are the batch, and parts that are too small to share.
    assert int(alive) - elsewhere == pytest.approx(need.always, rel=0.05)


def test_a_layer_that_is_made_again_needs_what_is_calculated():
    hidden_size = 256
    layer = build_model(hidden_size, num_heads=2).to(torch.bfloat16).model.language_model.layers[0]

    def peak(num_tokens: int) -> int:
        hidden_states = torch.zeros(1, num_tokens, hidden_size, dtype=torch.bfloat16, requires_grad=True)
        turns = (torch.ones(1, num_tokens, 128, dtype=torch.bfloat16),) * 2

        def step():
            with torch.autocast("cpu", torch.bfloat16):
                output = checkpoint(
                    lambda states: layer(states, position_embeddings=turns), hidden_states, use_reentrant=False
                )
            output.backward(torch.ones_like(output))

        step()
        return peak_memory(step)

    # What does not grow with the tokens are gradients of the weights.
    per_token = (peak(512) - peak(256)) / 256
    assert per_token == pytest.approx(28 * hidden_size + 12 * 4 * hidden_size, rel=0.1)
