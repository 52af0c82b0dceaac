"""More layers for a language model: it computes the same, and can learn more."""

import pytest
import torch
from refusals import refused
from tiny_spa3_vlm import conversation, photo, tiny_model, tiny_processor

from spa3r.modeling_spa3r.checkpoints.loading import load_spa3_vlm
from spa3r.trainers.world.deeper import add_layers, main


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model of two layers, and the same with four."""
    folder = tmp_path_factory.mktemp("deeper")
    tiny_model().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    main([str(folder / "model"), str(folder / "deeper"), "--layers", "4"])
    return folder


@pytest.fixture(scope="module")
def inputs():
    messages = [conversation([photo(0), photo(1)], "How many?")]
    return tiny_processor().apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )


def test_a_deeper_model_computes_what_the_model_did(folders, inputs):
    model, deeper = load_spa3_vlm(str(folders / "model")), load_spa3_vlm(str(folders / "deeper"))
    assert len(deeper.model.language_model.layers) == 4
    assert torch.equal(model(**inputs).logits, deeper(**inputs).logits)


def test_a_deeper_model_answers_by_a_cache_of_its_own_depth(folders, inputs):
    model, deeper = load_spa3_vlm(str(folders / "model")), load_spa3_vlm(str(folders / "deeper"))
    answers = [each.generate(**inputs, max_new_tokens=4, do_sample=False) for each in (model, deeper)]
    assert torch.equal(*answers)


def test_new_layers_learn(folders, inputs):
    deeper = load_spa3_vlm(str(folders / "deeper"))
    deeper(**inputs).logits.square().mean().backward()
    last = deeper.model.language_model.layers[-1]
    assert last.self_attn.o_proj.weight.grad.any() and last.mlp.down_proj.weight.grad.any()


def test_a_model_that_is_as_deep_is_refused(folders):
    with refused("`layers`", "got 2"):
        add_layers(load_spa3_vlm(str(folders / "model")), 2)
