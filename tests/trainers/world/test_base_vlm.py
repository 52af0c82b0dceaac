"""The base of a small Spa3-VLM: an untrained language model, a taught vision tower, and words as tokens."""

import math

import pytest
import torch
from refusals import refused
from tiny_instructions import write_instructions
from tiny_spa3_vlm import conversation, photo
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from spa3r.configuration import Spa3VLMConfig, load_preset
from spa3r.modeling_spa3r.checkpoints.assemble import load_base_vlm
from spa3r.trainers.world.base_vlm import build_base_vlm, main

PRESET = "spa3-vlm-nano"


def save_tower(folder, **changes):
    """Save an untrained vision tower of the preset, with some sizes changed."""
    config = Spa3VLMConfig(**load_preset(PRESET)).vlm_config.vision_config
    for name, value in changes.items():
        setattr(config, name, value)
    tower = Qwen2_5_VisionTransformerPretrainedModel(config)
    tower.save_pretrained(folder)
    return tower


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with instructions, a vision tower, and what was made of them."""
    folder = tmp_path_factory.mktemp("made")
    save_tower(folder / "vision")
    instructions = write_instructions(folder / "instructions")
    options = ["--preset", PRESET, "--vision", folder / "vision", "--instructions", instructions]
    main([str(part) for part in [*options, "--output", folder / "qwen"]])
    return folder


def test_the_folder_is_a_whole_qwen_with_the_taught_tower(made):
    model, _ = load_base_vlm(str(made / "qwen"))
    taught = Qwen2_5_VisionTransformerPretrainedModel.from_pretrained(made / "vision").state_dict()
    assert all(torch.equal(tensor, taught[name]) for name, tensor in model.model.visual.state_dict().items())


def test_the_words_of_the_instructions_are_tokens(made):
    tokenizer = AutoTokenizer.from_pretrained(made / "qwen")
    assert len(tokenizer("How many")["input_ids"]) == 2


def test_the_chat_template_writes_a_conversation(made):
    tokenizer = AutoTokenizer.from_pretrained(made / "qwen")
    text = tokenizer.apply_chat_template(conversation([photo(0)], "How many?"), tokenize=False)
    assert text.endswith("<|vision_start|><|image_pad|><|vision_end|>How many?<|im_end|>\n")


def test_answers_end_at_the_token_that_ends_them_in_training(made):
    model = AutoModelForImageTextToText.from_pretrained(made / "qwen")
    tokenizer = AutoTokenizer.from_pretrained(made / "qwen")
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


@torch.no_grad()
def test_at_first_all_words_are_about_equally_likely():
    model = build_base_vlm(PRESET, None)
    ids = torch.randint(7, 1024, (4, 64), generator=torch.Generator().manual_seed(0))
    assert model(input_ids=ids, labels=ids).loss == pytest.approx(math.log(1024), abs=1)


def test_a_tower_of_another_size_is_refused(tmp_path):
    save_tower(tmp_path, depth=2, fullatt_block_indexes=[0, 1])
    with refused("`depth`", "2", "3", PRESET):
        build_base_vlm(PRESET, str(tmp_path))
