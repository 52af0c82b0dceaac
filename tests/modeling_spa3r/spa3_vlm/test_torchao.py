"""Spa3-VLM whose language model torchao quantises: its answers, its checkpoint, and what stays whole."""

import pytest
import torch
from tiny_bases import assembled, enlarge, processor_of
from tiny_spa3_vlm import CONVERSATIONS, GEOMETRY, conversation, only, photo, prepare, tiny_config
from transformers import AutoModelForImageTextToText, TorchAoConfig
from trl import ModelConfig

from spa3r import SceneSession, Spa3RForPreTraining, VGGTForGeometry
from spa3r.modeling_spa3r.checkpoints.loading import load_spa3_vlm
from spa3r.trainers.tuning.lora import load_to_tune

quantization = pytest.importorskip("torchao.quantization")

WHOLE = ["lm_head", "model.fusion", "model.spatial_encoder", "model.vlm.visual"]
LANGUAGE_MODEL = "model.vlm.language_model.layers."
# A type of torchao, and the least mean cosine of its logits and the whole model's.
WIDTHS = {
    "8 bits": (lambda: quantization.Int8WeightOnlyConfig(), 0.995),
    # Kernels for packed weights of 4 bits need a GPU; these have the same values, in bytes.
    "4 bits": (
        lambda: quantization.IntxWeightOnlyConfig(torch.int4, quantization.granularity.PerGroup(16)),
        0.85,
    ),
}


def quantised_names(model) -> set[str]:
    return {name for name, weight in model.named_parameters() if type(weight.data) is not torch.Tensor}


def quantised(model_class, folder, width, whole):
    config = TorchAoConfig(WIDTHS[width][0](), modules_to_not_convert=whole)
    return model_class.from_pretrained(folder, quantization_config=config).eval()


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def whole(request, tmp_path_factory):
    """A whole model, and its checkpoint."""
    model, folder = assembled(request.param), tmp_path_factory.mktemp(request.param)
    enlarge(model.model.fusion, 1.0)
    model.save_pretrained(folder)
    processor_of(model).save_pretrained(folder)
    return model.eval(), folder


@pytest.fixture(scope="module", params=WIDTHS)
def pair(request, whole):
    """The whole model and one in few bits."""
    return request.param, whole[0], quantised(AutoModelForImageTextToText, whole[1], request.param, WHOLE)


def test_the_layers_of_the_language_model_alone_are_quantised(pair):
    _, model, small = pair
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert quantised_names(small) == {name for name in linear if name.startswith(LANGUAGE_MODEL)}


@torch.no_grad()
def test_latents_are_the_same_and_logits_close(pair):
    width, model, small = pair
    inputs = prepare(processor_of(model), CONVERSATIONS)
    scenes = [each.encode_scene(**only(inputs, *GEOMETRY, "num_views")) for each in (model, small)]
    assert torch.equal(*scenes)
    tokens = inputs["attention_mask"].bool()
    logits = [each(**inputs).logits[tokens] for each in (model, small)]
    assert torch.cosine_similarity(*logits, dim=-1).mean() > WIDTHS[width][1]


@torch.no_grad()
def test_a_saved_model_gives_the_same_logits_and_answers(pair, tmp_path):
    _, model, small = pair
    processor = processor_of(model)
    small.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = load_spa3_vlm(str(tmp_path)).eval()
    assert quantised_names(loaded) == quantised_names(small)
    inputs = prepare(processor, CONVERSATIONS)
    assert torch.equal(loaded(**inputs).logits, small(**inputs).logits)
    sessions = [SceneSession(each, processor, [photo(0), photo(1)]) for each in (small, loaded)]
    asked = [session.ask(["Where?", "How many?"], max_new_tokens=4) for session in sessions]
    fresh = prepare(processor, conversation([photo(0), photo(1)], "Where?"))
    tokens = small.generate(**fresh, max_new_tokens=4, do_sample=False)[0, fresh["input_ids"].shape[1] :]
    assert asked[0] == asked[1] and asked[0][0] == processor.decode(tokens, skip_special_tokens=True).strip()


@pytest.mark.parametrize("model_class", [VGGTForGeometry, Spa3RForPreTraining])
def test_what_decides_cameras_stays_whole_unasked(model_class, tmp_path):
    config = tiny_config().spatial_config
    model_class(config.vggt_config if model_class is VGGTForGeometry else config).save_pretrained(tmp_path)
    names = quantised_names(quantised(model_class, tmp_path, "8 bits", []))
    assert not [name for name in names if "vggt" in name or "camera_head" in name]
    assert bool(names) == (model_class is Spa3RForPreTraining)


def test_training_what_cannot_become_whole_again_is_refused(whole, tmp_path):
    quantised(AutoModelForImageTextToText, whole[1], "8 bits", WHOLE).save_pretrained(tmp_path)
    processor_of(whole[0]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="torchao"):
        load_to_tune(ModelConfig(model_name_or_path=str(tmp_path), use_peft=True), bf16=False)
