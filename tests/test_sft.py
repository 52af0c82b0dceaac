"""Instruction tuning with TRL's SFTTrainer: what trains, by which loss, and how a run goes on."""

import shutil

import pytest
import torch
from datasets import Dataset
from tiny_instructions import NUM_RECORDS, losses, message, trainer_of, write_instructions
from tiny_spa3_vlm import tiny_model, tiny_processor
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback

from spa3r.trainers.instructions import load_instructions
from spa3r.trainers.pretrain import RECIPES
from spa3r.trainers.sft import parse_arguments, run


@pytest.fixture(scope="module")
def instructions(tmp_path_factory):
    return write_instructions(tmp_path_factory.mktemp("instructions") / "set")


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(vlm, instructions, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "run"
    trainer = trainer_of(vlm, instructions, output)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    run(trainer, [])
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
    # The bias of the keys shifts all weights of a query alike, and softmax does not see it.
    expected = [name for name in before if not is_frozen(name) and not name.endswith("k_proj.bias")]
    assert len(expected) > 40 and [name for name in expected if torch.equal(after[name], before[name])] == []


def test_the_final_model_loads_with_its_processor(trained):
    trainer, _, output = trained
    model, info = AutoModelForImageTextToText.from_pretrained(output / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    weights = model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in trainer.model.state_dict().items())
    assert AutoProcessor.from_pretrained(output / "model").image_processor.image_width == 56


def test_the_loss_is_the_models_own_on_the_answers_alone(vlm, instructions, tmp_path):
    trainer = trainer_of(vlm, instructions, tmp_path, per_device_train_batch_size=NUM_RECORDS, learning_rate=0)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(NUM_RECORDS)])
    tokenizer = tiny_processor().tokenizer
    answers = [tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert answers == [f"{index}" * (1 + index) + "<|im_end|>\n" for index in range(NUM_RECORDS)]
    trainer.train()
    with torch.no_grad():
        expected = tiny_model()(**batch).loss
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-3)


class Gradients(TrainerCallback):
    """What the first step is taken by."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.by_name = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def gradients_of(vlm, instructions, output, **options):
    gradients = Gradients()
    trainer_of(vlm, instructions, output, gradients, max_steps=1, save_strategy="no", **options).train()
    return gradients.by_name


def test_a_batch_has_the_gradients_of_single_records_accumulated(vlm, instructions, tmp_path):
    # Weighted by tokens: the answers have different lengths.
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


def test_lora_trains_the_adapter_and_low_rank_weights_and_merges(vlm, instructions, tmp_path):
    targets = r"model\.vlm\.language_model\..*\.(q_proj|v_proj)"
    lora = {"use_peft": "true", "lora_target_modules": targets, "lora_modules_to_save": "fusion"}
    trainer = trainer_of(vlm, instructions, tmp_path, **lora)
    trainer.train()
    merged = trainer.model.merge_and_unload()
    before = tiny_model().state_dict()
    changed = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("model.fusion.") for name in changed)
    others = {name for name in changed if not name.startswith("model.fusion.")}
    assert others and all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in others)
    assert not any(is_frozen(name) for name in changed)


def test_a_lost_loss_ends_the_run_and_keeps_the_last_checkpoint(vlm, instructions, tmp_path):
    class Lose(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                model.lm_head.weight.data.fill_(torch.nan)

    trainer = trainer_of(vlm, instructions, tmp_path, Lose())
    with pytest.raises(FloatingPointError, match="not finite .* at step 3; the last complete .*checkpoint-2"):
        trainer.train()
    assert not (tmp_path / "checkpoint-3").exists()


def test_a_share_of_an_instruction_set_is_drawn_by_the_seed(instructions):
    half = load_instructions([f"{instructions}@0.5"], seed=0)
    assert len(half) == NUM_RECORDS / 2
    assert half["messages"] == load_instructions([f"{instructions}@0.5"], seed=0)["messages"]
    assert half["messages"] != load_instructions([f"{instructions}@0.5"], seed=1)["messages"]
    assert len(load_instructions([str(instructions), f"{instructions}@0.25"], seed=0)) == NUM_RECORDS * 1.25


@pytest.mark.parametrize(
    "sources, message",
    [
        (["nowhere"], "`nowhere` holds no instruction set"),
        (["{set}@2"], r"must be in \(0, 1\], got `.*@2`"),
        (["{set}@some"], r"must be in \(0, 1\], got `.*@some`"),
    ],
)
def test_a_wrong_source_is_refused(sources, message, instructions):
    with pytest.raises(ValueError, match=message):
        load_instructions([source.format(set=instructions) for source in sources], seed=0)


def test_an_instruction_set_without_images_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    Dataset.from_list([{"messages": [message("user", "Hello.")]}]).to_parquet(tmp_path / "data" / "0.parquet")
    with pytest.raises(ValueError, match=r"has no column \['images'\]"):
        load_instructions([str(tmp_path)], seed=0)


def test_an_unknown_key_of_a_recipe_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("learning_rat: 1e-3\n")
    with pytest.raises(ValueError, match="learning_rat"):
        parse_arguments(
            ["--config", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path), "--use_cpu", "true"]
        )


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("spa3-vlm-*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_has_the_official_hyper_parameters(recipe, tmp_path):
    # Precision is the machine's business.
    options = ["--config", recipe, "--bf16", "false", "--use_cpu", "true", "--output_dir", tmp_path]
    data_args, args, model_args = parse_arguments([str(option) for option in options])
    assert data_args.instructions and model_args.model_name_or_path
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 8
    assert (args.num_train_epochs, args.weight_decay, args.max_grad_norm) == (1, 0.01, 1.0)
    assert args.get_warmup_steps(1000) == 30 and args.lr_scheduler_type == "cosine"
    assert args.learning_rate == (1e-4 if model_args.use_peft else 1e-5)
