"""Instruction tuning with TRL's SFTTrainer: trained weights, loss, instruction sets and refusals."""

import json
import os
import re
import shutil

import fsspec
import pytest
import torch
from datasets import Dataset, List
from datasets import Image as ImageColumn
from PIL import Image
from pyarrow import Table, parquet
from safetensors.torch import load_file, save_file
from tiny_instructions import NUM_RECORDS, command_line, losses, message, trainer_of
from tiny_spa3_vlm import photo, tiny_model, tiny_processor
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback

from spa3r.data_scripts.common.images import UnreadableFrame
from spa3r.trainers.runs.recipes import RECIPES
from spa3r.trainers.tuning.instruction_data import InstructionCollator, check_lengths, load_instructions, open_images
from spa3r.trainers.tuning.sft import build_trainer, parse_arguments, run

LORA = {
    "use_peft": "true",
    "lora_target_modules": r"model\.vlm\.language_model\..*\.(q_proj|v_proj)",
    "lora_modules_to_save": "fusion",
}


@pytest.fixture(scope="module")
def trained(vlm, instructions, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "run"
    trainer = trainer_of(vlm, instructions, output)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    run(trainer, [f"{instructions}@0.5"])
    return trainer, before, output


def is_frozen(name):
    return name.startswith(("model.spatial_encoder.", "model.vlm.visual."))


def test_frozen_parts_get_no_gradient_and_keep_their_bits(trained):
    trainer, before, _ = trained
    frozen = [name for name in before if is_frozen(name)]
    after = trainer.model.state_dict()
    assert frozen and all(torch.equal(after[name], before[name]) for name in frozen)
    assert all(p.grad is None for name, p in trainer.model.named_parameters() if is_frozen(name))


def test_every_weight_of_the_adapter_and_the_language_model_changes(trained):
    trainer, before, _ = trained
    after = trainer.model.state_dict()
    # The bias of the keys shifts all scores of a query equally, so softmax ignores it.
    expected = [name for name in before if not is_frozen(name) and not name.endswith("k_proj.bias")]
    assert len(expected) > 40 and [name for name in expected if torch.equal(after[name], before[name])] == []


def test_the_final_model_loads_with_its_processor(trained):
    trainer, _, output = trained
    model, info = AutoModelForImageTextToText.from_pretrained(output / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    weights = model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in trainer.model.state_dict().items())
    assert AutoProcessor.from_pretrained(output / "model").image_processor.image_width == 56


def test_the_final_model_has_the_tokenizer_of_the_first_without_the_padding_of_a_batch(trained, vlm):
    assert (trained[2] / "model" / "tokenizer.json").read_text() == (vlm / "tokenizer.json").read_text()


def test_the_final_model_carries_its_code_and_a_card_of_its_training(trained, instructions):
    folder = trained[2] / "model"
    card = (folder / "README.md").read_text()
    assert (folder / "modeling_spa3_vlm.py").is_file() and "auto_map" in (folder / "config.json").read_text()
    assert f"`{instructions}`, weight 0.5" in card and "8 records" in card and "4 steps of 2" in card
    assert not (folder / "training_args.bin").exists()


def test_the_loss_is_the_models_own_on_the_answers_alone(vlm, instructions, tmp_path):
    trainer = trainer_of(vlm, instructions, tmp_path, per_device_train_batch_size=NUM_RECORDS, learning_rate=0)
    batch = InstructionCollator(tiny_processor(), assistant_only_loss=True)([*trainer.train_dataset])
    tokenizer = tiny_processor().tokenizer
    answers = [tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert answers == [f"{index}" * (1 + index) + "<|im_end|>\n" for index in range(NUM_RECORDS)]
    trainer.train()
    with torch.no_grad():
        expected = tiny_model()(**batch).loss
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-3)


class Gradients(TrainerCallback):
    """The gradients of the first step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.by_name = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def gradients_of(vlm, instructions, output, **options):
    gradients = Gradients()
    trainer_of(vlm, instructions, output, gradients, max_steps=1, save_strategy="no", **options).train()
    return gradients.by_name


@torch.no_grad()
def test_training_without_images_has_the_loss_of_the_text_alone(vlm, instructions, tmp_path):
    trainer = trainer_of(vlm, instructions, tmp_path, without_images="true", learning_rate=0)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(NUM_RECORDS)])
    assert "pixel_values" not in batch
    tokenizer = tiny_processor().tokenizer
    answers = [tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert answers == [f"{index}" * (1 + index) + "<|im_end|>\n" for index in range(NUM_RECORDS)]
    assert "<|image_pad|>" not in tokenizer.decode(batch["input_ids"].flatten())
    assert trainer.compute_loss(trainer.model, batch).isfinite()


def test_muon_trains_the_matrices_of_the_language_model_and_adamw_the_rest(vlm, instructions, tmp_path):
    trainer = trainer_of(vlm, instructions, tmp_path, learning_rate=0, muon_learning_rate=0.01, max_steps=1)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    projections = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight", "down_proj.weight")
    layers = [name for name in before if ".language_model.layers." in name and name.endswith(projections)]
    assert layers and set(layers) <= changed
    assert all(".language_model.layers." in name and before[name].ndim == 2 for name in changed)


def test_a_run_with_muon_continues_to_the_same_bits(vlm, instructions, tmp_path):
    options = {"muon_learning_rate": 0.01, "save_steps": 2}
    whole = trainer_of(vlm, instructions, tmp_path / "whole", **options)
    whole.train()
    first = trainer_of(vlm, instructions, tmp_path / "resumed", **options)
    first.train()
    resumed = trainer_of(vlm, instructions, tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-2"))
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(expected, found) for expected, found in pairs)


def test_the_card_says_that_training_saw_no_images(vlm, instructions, tmp_path):
    run(trainer_of(vlm, instructions, tmp_path, max_steps=1, without_images="true"), [str(instructions)], True)
    assert "without its images" in (tmp_path / "model" / "README.md").read_text()


def test_a_batch_has_the_gradients_of_single_records_accumulated(vlm, instructions, tmp_path):
    # The loss weighs tokens, and answers have different lengths.
    whole = gradients_of(vlm, instructions, tmp_path, per_device_train_batch_size=NUM_RECORDS)
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": NUM_RECORDS}
    singles = gradients_of(vlm, instructions, tmp_path, **options)
    assert singles.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(singles[name], gradient, atol=1e-5, rtol=1e-4)


def test_checkpointing_activations_changes_no_gradient(vlm, instructions, tmp_path):
    on, off = (gradients_of(vlm, instructions, tmp_path, gradient_checkpointing=on) for on in ("true", "false"))
    assert on.keys() == off.keys()
    for name, gradient in off.items():
        torch.testing.assert_close(on[name], gradient, atol=1e-6, rtol=1e-5)


def test_a_run_continues_from_its_last_complete_checkpoint_to_the_same_bits(vlm, instructions, trained, tmp_path):
    trainer, _, output = trained
    shutil.copytree(output, tmp_path / "run")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    # Killed while it wrote its third checkpoint.
    (tmp_path / "run" / "checkpoint-3").mkdir()
    resumed = trainer_of(vlm, instructions, tmp_path / "run")
    run(resumed, [])
    expected = trainer.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    assert losses(tmp_path / "run") == losses(output)
    counts = losses(output, "num_tokens")
    assert losses(tmp_path / "run", "num_tokens") == counts and sorted(set(counts)) == counts
    states = [json.loads((run / "checkpoint-4/trainer_state.json").read_text()) for run in (tmp_path / "run", output)]
    assert states[0]["stateful_callbacks"] == states[1]["stateful_callbacks"]


ALL_LINEAR = {"use_peft": "true", "lora_target_modules": "all-linear"}


@pytest.mark.parametrize(
    ("options", "adapted"),
    [
        (ALL_LINEAR, ["model.vlm.language_model."]),
        (ALL_LINEAR | {"lora_modules_to_save": "fusion"}, ["model.vlm.language_model."]),
        (ALL_LINEAR | {"lora_target_modules": "q_proj"}, ["model.vlm.language_model.", "model.fusion."]),
        (ALL_LINEAR | {"lora_target_modules": r".*\.(q_proj|fc1)"}, ["model.vlm.language_model.", "model.fusion."]),
    ],
    ids=str,
)
def test_lora_reaches_the_language_model_and_the_adapter_alone(options, adapted, vlm, instructions, tmp_path):
    trainer = trainer_of(vlm, instructions, tmp_path, max_steps=2, **options)
    names = [name.removeprefix("base_model.model.") for name, _ in trainer.model.named_parameters()]
    layers = [name for name in names if "lora_" in name]
    assert layers and all(name.startswith(tuple(adapted)) for name in layers)
    assert any(name.startswith(adapted[0]) for name in layers)
    trainer.train()
    before, after = tiny_model().state_dict(), trainer.model.merge_and_unload().state_dict()
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed and not any(is_frozen(name) for name in changed)


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("lora_target_modules", "qkv", "model.*frozen.*`qkv`"),
        ("lora_target_modules", r"model\.spatial_encoder\..*", "model.spatial_encoder"),
        ("lora_target_modules", "no_such_layer", "nothing"),
        ("lora_target_modules", "*.q_proj", r"`\*\.q_proj`"),
        ("lora_modules_to_save", "spatial_encoder", "model.spatial_encoder"),
    ],
)
def test_lora_of_what_stays_frozen_is_refused_by_name(option, value, named, vlm, instructions, tmp_path):
    options = ALL_LINEAR | {option: value}
    with pytest.raises(ValueError, match=f"`{option}`.*{named}"):
        trainer_of(vlm, instructions, tmp_path, **options)


def test_lora_trains_the_adapter_and_low_rank_weights_and_merges(vlm, instructions, tmp_path):
    trainer = trainer_of(vlm, instructions, tmp_path, **LORA)
    trainer.train()
    merged = trainer.model.merge_and_unload()
    before = tiny_model().state_dict()
    changed = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("model.fusion.") for name in changed)
    others = {name for name in changed if not name.startswith("model.fusion.")}
    assert others and all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in others)
    assert not any(is_frozen(name) for name in changed)


def test_lora_trains_in_float32_and_saves_in_bfloat16(vlm, instructions, tmp_path):
    trainer = trainer_of(vlm, instructions, tmp_path, max_steps=1, bf16="true", dtype="bfloat16", **LORA)
    trained = {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad}
    assert trained == {torch.float32}
    run(trainer, [str(instructions)])
    assert {tensor.dtype for tensor in load_file(tmp_path / "model" / "model.safetensors").values()} == {
        torch.bfloat16
    }


def test_the_final_model_of_lora_is_merged_and_loads_alone(vlm, instructions, tmp_path):
    trainer = trainer_of(vlm, instructions, tmp_path, max_steps=2, **LORA)
    run(trainer, [str(instructions)])
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    batch = InstructionCollator(tiny_processor())([trainer.train_dataset[1]])
    with torch.no_grad():
        expected = trainer.model(**batch).logits
        torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected, tiny_model()(**batch).logits, atol=1e-3)


def test_training_in_bfloat16_without_a_float32_copy_warns(vlm, instructions, tmp_path, caplog):
    trainer_of(vlm, instructions, tmp_path, bf16="true", dtype="bfloat16")
    assert "`--dtype float32`" in caplog.text


def test_a_non_finite_loss_ends_the_run_and_keeps_the_last_checkpoint(vlm, instructions, tmp_path):
    class LoseWeights(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                model.lm_head.weight.data.fill_(torch.nan)

    trainer = trainer_of(vlm, instructions, tmp_path, LoseWeights())
    with pytest.raises(FloatingPointError, match="step 3 .*`loss` = nan.*checkpoint-2"):
        trainer.train()
    assert not (tmp_path / "checkpoint-3").exists()


def test_an_instruction_set_counts_by_its_weight(instructions):
    assert len(load_instructions([str(instructions), f"{instructions}@0.25"], seed=0)) == NUM_RECORDS * 1.25
    twice_and_a_half = load_instructions([f"{instructions}@2.5"], seed=0)["messages"]
    assert len(twice_and_a_half) == NUM_RECORDS * 2.5
    once = load_instructions([str(instructions)], seed=0)["messages"]
    assert all(twice_and_a_half.count(messages) in (2, 3) for messages in once)


def test_a_fraction_of_an_instruction_set_is_drawn_by_the_seed(instructions):
    half = load_instructions([f"{instructions}@0.5"], seed=0)
    assert len(half) == NUM_RECORDS / 2
    assert half["messages"] == load_instructions([f"{instructions}@0.5"], seed=0)["messages"]
    assert half["messages"] != load_instructions([f"{instructions}@0.5"], seed=1)["messages"]


@pytest.mark.parametrize("source", ["nowhere", "{set}@0", "{set}@-1", "{set}@some"])
def test_a_wrong_source_is_refused(source, instructions):
    source = source.format(set=instructions)
    with pytest.raises(ValueError, match=re.escape(f"`{source}`")):
        load_instructions([source], seed=0)


def test_an_instruction_set_without_images_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    Dataset.from_list([{"messages": [message("user", "Hello.")]}]).to_parquet(tmp_path / "data" / "0.parquet")
    with pytest.raises(ValueError, match=f"`{tmp_path}`.*images"):
        load_instructions([str(tmp_path)], seed=0)


def write_record(folder, images, *messages):
    """An instruction set of one record."""
    (folder / "data").mkdir()
    record = {"images": [str(image) for image in images], "messages": list(messages)}
    Dataset.from_list([record]).cast_column("images", List(ImageColumn())).to_parquet(folder / "data" / "0.parquet")
    return str(folder)


@pytest.fixture
def door(tmp_path):
    photo(0).save(tmp_path / "door.png")
    return tmp_path / "door.png"


ANSWER = message("assistant", "A chair.")
TEXT_ANSWER = [{"role": "assistant", "content": "A chair."}]


def spoil(path, kind):
    """Make an image one that the processor refuses."""
    if kind == "16 bits":
        Image.new("I;16", (48, 36), 999).save(path)
    elif kind == "no image":
        path.write_bytes(b"no image")
    elif kind == "elongated":
        Image.new("RGB", (999, 9)).save(path)
    else:
        format = {"half a PNG": "PNG", "half a JPEG": "JPEG", "half a WebP": "WEBP"}[kind]
        photo(0, 96, 72).save(path, format)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("has_bytes", [False, True])
@pytest.mark.parametrize("kind", ["16 bits", "no image", "elongated", "half a PNG", "half a JPEG", "half a WebP"])
def test_an_image_that_training_could_not_use_is_named_before_it(kind, has_bytes, door, tmp_path):
    spoil(tmp_path / "bad.png", kind)
    good = [message("user", "What is it?", 1), ANSWER]
    rows = [
        {"images": [{"path": str(path), "bytes": None}], "messages": good} for path in (door, tmp_path / "bad.png")
    ]
    if has_bytes:
        rows[1]["images"][0]["bytes"] = (tmp_path / "bad.png").read_bytes()
    (tmp_path / "data").mkdir()
    Dataset.from_list(rows).cast_column("images", List(ImageColumn())).to_parquet(tmp_path / "data" / "0.parquet")
    with pytest.raises(ValueError, match=f"Record 1 .*`{tmp_path}`.*bad.png"):
        load_instructions([str(tmp_path)], seed=0)


def test_complete_jpeg_files_are_accepted_whatever_follows_them(door, tmp_path):
    for name, rest in (("a.jpg", b""), ("b.jpg", b"trailing data of a phone")):
        photo(0).save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + rest)
    images = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    assert len(load_instructions([write_record(tmp_path, images, message("user", "What?", 2), ANSWER)], seed=0)) == 1


@pytest.mark.parametrize("form", ["struct", "path", "bytes"])
def test_parquet_without_metadata_of_datasets_is_read_alike(form, door, tmp_path):
    image = {"struct": {"bytes": None, "path": str(door)}, "path": str(door), "bytes": door.read_bytes()}[form]
    messages = [message("user", "What is it?", 1), ANSWER]
    (tmp_path / "data").mkdir()
    parquet.write_table(Table.from_pylist([{"images": [image], "messages": messages}]), tmp_path / "data/0.parquet")
    (record,) = load_instructions([str(tmp_path)], seed=0)
    assert open_images(record["images"])[0].tobytes() == photo(0).tobytes()


def test_a_column_of_images_that_holds_none_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    row = {"images": [7], "messages": [message("user", "What?", 1), ANSWER]}
    parquet.write_table(Table.from_pylist([row]), tmp_path / "data/0.parquet")
    with pytest.raises(ValueError, match=f"`images`.*`{tmp_path}`.*int64"):
        load_instructions([str(tmp_path)], seed=0)


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        pytest.param([message("user", "What is it?", 1)], r"\['user'\]", id="no answer"),
        pytest.param([message("user", "What?", 1), message("assistant", " ")], "turn 1", id="empty answer"),
        pytest.param([message("user", "What?", 2), ANSWER], "1 images.*2", id="too many places"),
        pytest.param([message("user", "What?"), ANSWER], "1 images.*0", id="no place"),
        pytest.param(
            [message("human", "What?", 1), message("gpt", "A chair.")], "`human`", id="role of another format"
        ),
        pytest.param([message("user", "<image>What?", 1), ANSWER], "`<image>`", id="literal placeholder"),
        pytest.param([{"role": "user", "content": "<image>What?"}, *TEXT_ANSWER], "`<image>`", id="in plain text"),
        pytest.param([message("user", "<|image_pad|>?", 1), ANSWER], r"`<\|image_pad\|>`", id="control token"),
        pytest.param([{"role": "system", "content": "Look."}, *TEXT_ANSWER], "TRL", id="no user to show images to"),
    ],
)
def test_a_record_that_cannot_be_learnt_from_is_named(messages, named, door, tmp_path):
    with pytest.raises(ValueError, match=f"Record 0 .*{named}"):
        load_instructions([write_record(tmp_path, [door], *messages)], seed=0)


def test_images_are_opened_upright_and_on_white_whatever_their_exif_data(tmp_path):
    Image.new("RGBA", (8, 6), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (8, 6), (9, 9, 9)).save(tmp_path / "damaged.png", exif=b"Exif\0\0ZZZZ\0\0\0\x08\0\0")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (8, 6), (9, 9, 9)).save(tmp_path / "turned.png", exif=turned)
    images = [tmp_path / f"{name}.png" for name in ("clear", "damaged", "turned")]
    (record,) = load_instructions([write_record(tmp_path, images, message("user", "What?", 3), ANSWER)], seed=0)
    opened = open_images(record["images"])
    assert [image.size for image in opened] == [(8, 6), (8, 6), (6, 8)]
    assert [image.getpixel((0, 0)) for image in opened] == [(255, 255, 255), (9, 9, 9), (9, 9, 9)]
    with_bytes = [{"bytes": path.read_bytes(), "path": None} for path in images]
    assert [image.tobytes() for image in open_images(with_bytes)] == [image.tobytes() for image in opened]


def test_a_pipe_is_no_image_and_holds_nothing_up(tmp_path):
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    record = {"images": [str(tmp_path / "pipe.jpg")], "messages": [message("user", "?", 1), ANSWER]}
    Dataset.from_list([record]).to_parquet(tmp_path / "data" / "0.parquet")
    with pytest.raises(ValueError, match="Record 0 .*pipe.jpg"):
        load_instructions([str(tmp_path)], seed=0)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/door.png", "memory://nothing.png", "nosuch://door.png"])
def test_an_address_that_cannot_be_read_is_named(address):
    with pytest.raises(UnreadableFrame, match=re.escape(f"`{address}`")):
        open_images([{"path": address, "bytes": None}])


def test_images_elsewhere_are_opened_on_white(tmp_path):
    Image.new("RGBA", (4, 3), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    fsspec.filesystem("memory").put(str(tmp_path / "clear.png"), "/clear.png")
    (image,) = open_images([{"path": "memory://clear.png", "bytes": None}])
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (255, 255, 255)


def test_a_missing_image_is_named_before_training(door, tmp_path):
    folder = write_record(tmp_path, [door], message("user", "What is it?", 1), ANSWER)
    load_instructions([folder], seed=0)
    door.unlink()
    with pytest.raises(ValueError, match=f"`{door}`"):
        load_instructions([folder], seed=0)


@pytest.mark.parametrize("content", ["broken", "empty", "text alone"])
def test_an_instruction_set_that_cannot_be_used_is_named(content, door, tmp_path):
    images = [] if content == "text alone" else [door]
    folder = write_record(tmp_path, images, message("user", "What is it?", len(images)), ANSWER)
    file = tmp_path / "data" / "0.parquet"
    if content == "broken":
        file.write_bytes(file.read_bytes()[:-100])
    elif content == "empty":
        parquet.write_table(parquet.read_table(file).slice(0, 0), file)
    with pytest.raises(ValueError, match=f"`{folder}`"):
        load_instructions([folder], seed=0)


def test_the_length_of_a_record_is_that_of_its_tokens_in_training(instructions):
    data, processor = load_instructions([str(instructions)], seed=0), tiny_processor()
    collator = InstructionCollator(processor)
    lengths = [collator([record])["input_ids"].shape[1] for record in data]
    check_lengths(data, processor, max(lengths))
    longest = lengths.index(max(lengths))
    with pytest.raises(ValueError, match=f"Record {longest} has {max(lengths)} tokens.*`max_length`"):
        check_lengths(data, processor, max(lengths) - 1)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"model_name_or_path": "nowhere"}, FileNotFoundError, "`nowhere`"),
        ({"max_length": 20}, ValueError, "`max_length`"),
        ({"eval_strategy": "steps", "eval_steps": 1}, ValueError, "`--eval_instructions`"),
        ({"per_device_train_batch_size": 0}, ValueError, "`per_device_train_batch_size`"),
        ({"gradient_accumulation_steps": 0}, ValueError, "`gradient_accumulation_steps`"),
        ({"config": "vsi"}, ValueError, "`vsi`"),
        ({"use_peft": True, "muon_learning_rate": 0.02}, ValueError, "`muon_learning_rate` .*0.02"),
        ({"assistant_only_loss": False}, ValueError, "`assistant_only_loss` .*false"),
        ({"attn_implementation": "nosuch"}, ValueError, "nosuch.*options"),
        ({"without_images": True, "scene_latents": "kept"}, ValueError, "`kept`"),
        ({"learning_rat": 1}, ValueError, "`--learning_rate`"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_options_are_refused_by_name(options, error, named, vlm, instructions, tmp_path):
    arguments = command_line(vlm, instructions, tmp_path)
    for name, value in options.items():
        arguments += [f"--{name}", str(value)]
    with pytest.raises(error, match=named):
        build_trainer(*parse_arguments(arguments))


@pytest.mark.parametrize("name", ["model_name_or_path", "instructions"])
def test_a_missing_option_is_refused_by_name(name, vlm, instructions, tmp_path):
    options = {"model_name_or_path": vlm, "instructions": instructions} | {name: None}
    arguments = command_line(options["model_name_or_path"], options["instructions"], tmp_path)
    with pytest.raises(ValueError, match=f"`{name}`"):
        build_trainer(*parse_arguments(arguments))


# All but those of the nano world, of alignment and of rewards.
TUNING = {path.stem for path in RECIPES.glob("spa3-vlm-*.yaml") if "nano" not in path.stem}
OFFICIAL = sorted(name for name in TUNING if "-align" not in name and "-grpo" not in name)


@pytest.mark.parametrize("recipe", OFFICIAL)
def test_every_recipe_has_the_official_hyper_parameters(recipe, tmp_path):
    # Precision is the machine's business.
    options = ["--config", recipe, "--bf16", "false", "--use_cpu", "true", "--output_dir", tmp_path]
    data_args, args, model_args = parse_arguments([str(option) for option in options])
    assert data_args.instructions and model_args.model_name_or_path
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 8
    assert (args.num_train_epochs, args.weight_decay, args.max_grad_norm) == (1, 0.01, 1.0)
    assert args.get_warmup_steps(1000) == 30 and args.lr_scheduler_type == "cosine"
    assert args.learning_rate == (1e-4 if model_args.use_peft else 1e-5)


def test_a_model_of_another_kind_is_refused(instructions, tmp_path):
    tiny_model().model.spatial_encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="spa3r"):
        trainer_of(tmp_path / "encoder", instructions, tmp_path / "run")


@pytest.mark.parametrize("part", [".spatial_encoder.encoder.", ".fusion.cross_attention.q_"])
def test_a_model_with_weights_missing_is_refused(part, vlm, instructions, tmp_path):
    shutil.copytree(vlm, tmp_path / "vlm")
    weights = load_file(vlm / "model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if part not in name}
    save_file(weights, tmp_path / "vlm" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"`model{part}"):
        trainer_of(tmp_path / "vlm", instructions, tmp_path / "run")


@pytest.mark.parametrize("part", ["fusion.adapter.fc3.weight", "spatial_encoder.second.weight"])
def test_a_model_with_weights_that_have_no_place_in_it_is_refused(part, vlm, instructions, tmp_path):
    shutil.copytree(vlm, tmp_path / "vlm")
    weights = load_file(vlm / "model.safetensors") | {f"model.{part}": torch.zeros(2, 2)}
    save_file(weights, tmp_path / "vlm" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"`model.{part}`"):
        trainer_of(tmp_path / "vlm", instructions, tmp_path / "run")
