"""Every supported base of Spa3-VLM passes one suite; what a base must offer is named where it lacks."""

import pytest
import torch
from refusals import refused
from safetensors.torch import save_file
from tiny_bases import VLM_CONFIGS, assembled, enlarge, processor_of, tiny_base
from tiny_instructions import trainer_of, write_instructions
from tiny_spa3_vlm import CONVERSATIONS, GEOMETRY, conversation, latents_of, photo, prepare, without
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, Qwen2VLImageProcessorPil
from trl import chat_template_utils

from spa3r import SceneSession
from spa3r.modeling_spa3r.checkpoints.assemble import BASES, load_base_vlm, make_processor
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer
from spa3r.trainers.benchmark.models import load_benchmark_model

GREEDY = {"max_new_tokens": 6, "do_sample": False}
every_base = pytest.mark.parametrize("base", BASES)
with_deepstack = pytest.mark.parametrize("base", ["qwen3_vl"])


def trained(base, **settings):
    """A Spa3-VLM with an adapter that changes what it reads."""
    model = assembled(base, **settings)
    enlarge(model.model.fusion, 1.0)
    return model


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def test_every_base_is_tested():
    assert VLM_CONFIGS.keys() == BASES.keys()


@every_base
def test_a_fresh_adapter_leaves_the_logits_of_the_base_bit_for_bit(base):
    model = assembled(base)
    batch = prepare(processor_of(model), CONVERSATIONS)
    assert torch.equal(logits(model, batch), logits(tiny_base(base), without(batch, *GEOMETRY, "num_views")))


@pytest.mark.parametrize("fusion", ["cross_attention", "append"])
@every_base
def test_each_row_of_a_batch_equals_the_row_alone(base, fusion):
    model = trained(base, fusion=fusion)
    processor = processor_of(model)
    batch = prepare(processor, CONVERSATIONS)
    for row, mask, alone in zip(logits(model, batch), batch["attention_mask"], CONVERSATIONS, strict=True):
        expected = logits(model, prepare(processor, alone))[0]
        torch.testing.assert_close(row[mask.bool()], expected, atol=2e-5, rtol=0)


@every_base
def test_18_questions_from_one_prefix_have_the_tokens_of_fresh_calls(base):
    model, views = trained(base), [photo(seed) for seed in range(3)]
    processor = processor_of(model)
    questions = [f"How many{' of them' * (number % 4)}, {number}?" for number in range(18)]
    fresh = prepare(processor, [conversation(views, question) for question in questions])
    expected = model.generate(**fresh, **GREEDY)[:, fresh["input_ids"].shape[1] :]
    answers = SceneSession(model, processor, views).generate(questions, **GREEDY)
    assert torch.equal(answers, expected) and len(answers.unique(dim=0)) > 1


@every_base
def test_one_step_of_tuning_trains_adapter_and_language_model_and_saves_a_model_that_loads(base, tmp_path):
    model = trained(base)
    model.save_pretrained(tmp_path / "vlm")
    processor_of(model).save_pretrained(tmp_path / "vlm")
    instructions = write_instructions(tmp_path / "set", num_records=3)
    trainer = trainer_of(tmp_path / "vlm", instructions, tmp_path / "run", max_steps=1, per_device_train_batch_size=3)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("model.fusion.", "model.vlm.language_model.", "lm_head.")
    # The bias of the keys shifts all scores of a query equally, and not every expert is asked.
    kept = ("k_proj.bias", "experts.gate_up_proj", "experts.down_proj")
    trainable = {name for name in before if name.startswith(parts)}
    assert changed <= trainable and {name for name in trainable if not name.endswith(kept)} <= changed

    trainer.model.save_pretrained(tmp_path / "tuned")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "tuned")
    batch = prepare(AutoProcessor.from_pretrained(tmp_path / "vlm"), CONVERSATIONS)
    assert torch.equal(logits(loaded, batch), logits(trainer.model.eval(), batch))


@every_base
def test_a_benchmark_asks_the_plain_base_with_its_own_processor(base, tmp_path):
    vlm = tiny_base(base)
    vlm.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model, processor = load_benchmark_model(str(tmp_path), torch.device("cpu"))
    assert processor.chat_template == BASES[base][0]
    batch = prepare(processor_of(model), CONVERSATIONS)
    assert torch.equal(logits(model, batch), logits(vlm, without(batch, *GEOMETRY, "num_views")))


# Prompt and images.


# TRL has copies of the published templates; Qwen2-VL's is that of Qwen2.5-VL.
QWEN2, QWEN3 = chat_template_utils.qwen2_5_vl_chat_template, chat_template_utils.qwen3_vl_chat_template
TEMPLATES = {"qwen2_vl": QWEN2, "qwen2_5_vl": QWEN2, "qwen3_vl": QWEN3, "qwen3_vl_moe": QWEN3}
TURNS = [*conversation([photo(0)], "How many?"), {"role": "assistant", "content": "2"}]
CHATS = {
    "a question": (TURNS[:1], True),
    "an answer": (TURNS, False),
    "a message of the system": ([{"role": "system", "content": "Be brief."}, *TURNS], True),
}


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("base", TEMPLATES)
def test_the_prompt_is_that_of_the_base(base, chat):
    turns, prompt = CHATS[chat]
    ours, published = (
        byte_tokenizer().apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
        for template in (BASES[base][0], TEMPLATES[base])
    )
    assert ours == published


@pytest.mark.parametrize("width, height", [(640, 480), (300, 90), (480, 640)])
def test_a_base_with_patches_of_its_own_size_sees_whole_images_by_its_own_rule(width, height):
    model = assembled("qwen3_vl")
    image_processor = make_processor(model.config, byte_tokenizer()).image_processor
    image = photo(0, width, height)
    inputs = image_processor(image, return_tensors="pt")
    rows, columns = inputs["geometry_sizes"][0].tolist()
    assert columns == 518 and rows % 14 == 0
    view = (inputs["pixel_values_geometry"].reshape(rows, columns, 3) * 255).round().to(torch.uint8).numpy()
    own = Qwen2VLImageProcessorPil(
        patch_size=16, min_pixels=65536, max_pixels=16777216, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    expected = own(view, return_tensors="pt")
    assert torch.equal(inputs["image_grid_thw"], expected["image_grid_thw"])
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"])
    assert image_processor.get_number_of_image_patches(height, width) == len(inputs["pixel_values"])


# DeepStack.


@with_deepstack
def test_the_features_of_earlier_layers_reach_the_language_model_unchanged(base):
    model = trained(base)
    batch = prepare(processor_of(model), CONVERSATIONS)
    with torch.no_grad():
        fused = model.get_image_features(**without(batch, "input_ids", "attention_mask", "mm_token_type_ids"))
        plain = tiny_base(base).get_image_features(batch["pixel_values"], batch["image_grid_thw"])
    assert not torch.allclose(torch.cat(list(fused.pooler_output)), torch.cat(list(plain.pooler_output)))
    for layer, expected in zip(fused.deepstack_features, plain.deepstack_features, strict=True):
        assert torch.equal(torch.cat(list(layer)), torch.cat(list(expected)))


@with_deepstack
def test_latents_and_features_computed_before_give_the_logits_of_the_images(base):
    model = trained(base)
    batch = prepare(processor_of(model), CONVERSATIONS)
    computed = {
        "spatial_latents": latents_of(model, batch),
        "vision_features": model.model.encode_images(batch["pixel_values"], batch["image_grid_thw"]),
    }
    without_images = without(batch, "pixel_values", *GEOMETRY)
    assert torch.equal(logits(model, without_images | computed), logits(model, batch))


# What a base must offer.

# What is named as missing, by the type of the model.
OTHERS = {
    "llava": ["`rope_deltas`", "`get_rope_index()`", "`visual`"],
    "qwen3_5": ["`attention in every layer`"],
    "glm4v": ["`config.vision_start_token_id`"],
    "qwen2": ["`qwen3_vl`"],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_that_cannot_be_a_base_is_refused_by_what_it_lacks(kind, tmp_path):
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    save_file({}, tmp_path / "model.safetensors")  # refused before any weight is read
    with refused(f"`{kind}`", *OTHERS[kind]):
        load_base_vlm(str(tmp_path))
