"""Spa3-VLM in 8 and 4 bits: loaded, asked, tuned by QLoRA, merged."""

import copy

import pytest
import torch
from tiny_instructions import trainer_of
from tiny_spa3_vlm import GEOMETRY, batch_of, only, tiny_config, tiny_processor
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from spa3r import Spa3RForPreTraining, Spa3VLMForConditionalGeneration, VGGTForGeometry
from spa3r.configuration import Spa3RConfig, load_preset
from spa3r.trainers.tuning.save import save_tuned_model

bitsandbytes = pytest.importorskip("bitsandbytes")

WIDTHS = {"8 bits": {"load_in_8bit": True}, "4 bits": {"load_in_4bit": True}}
widths = pytest.mark.parametrize("width", WIDTHS)
LORA = {
    "use_peft": "true",
    "lora_target_modules": r"model\.vlm\.language_model\..*\.(q_proj|v_proj)",
    "lora_modules_to_save": "fusion",
}


def quantised_config(width: str) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(**WIDTHS[width], bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def sized(settings: dict) -> dict:
    """The tiny preset in sizes that the kernels for 4 bits take: inputs of 64 channels, outputs of 32."""
    settings = copy.deepcopy(settings)
    vlm, spatial = settings["vlm_config"], settings["spatial_config"]
    vlm["text_config"] |= {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    vlm["text_config"]["rope_parameters"]["mrope_section"] = [8, 12, 12]
    vlm["vision_config"] |= {"hidden_size": 64, "intermediate_size": 64, "out_hidden_size": 256}
    spatial["hidden_size"] = spatial["vggt_config"]["hidden_size"] = 64
    return {"vlm_config": vlm, "spatial_config": spatial}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Spa3VLMForConditionalGeneration(tiny_config(**sized(load_preset("spa3-vlm-tiny")))).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised")
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def quantised_names(model) -> list[str]:
    kinds = (bitsandbytes.nn.Linear8bitLt, bitsandbytes.nn.Linear4bit)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


@widths
@torch.no_grad()
def test_a_quantised_model_answers_like_the_whole_one(width, model, folder):
    options = {"quantization_config": quantised_config(width), "device_map": "cpu", "dtype": torch.float32}
    quantised = AutoModelForImageTextToText.from_pretrained(folder, **options)
    assert {name.split(".")[1] for name in quantised_names(quantised)} == {"vlm", "fusion", "spatial_encoder"}
    inputs = batch_of(model)
    scenes = [each.encode_scene(**only(inputs, *GEOMETRY, "num_views")).flatten(1) for each in (model, quantised)]
    tokens = inputs["attention_mask"].bool()
    logits = [each(**inputs).logits[tokens] for each in (model, quantised)]
    lowest = {"8 bits": 0.999, "4 bits": 0.95}[width]
    for pair in (scenes, logits):
        assert torch.cosine_similarity(*pair, dim=-1).min() > lowest
    assert quantised.generate(**inputs, max_new_tokens=2).shape[0] == len(inputs["input_ids"])


@pytest.mark.parametrize("model_class", [VGGTForGeometry, Spa3RForPreTraining])
@torch.no_grad()
def test_what_decides_cameras_is_not_quantised(model_class, tmp_path):
    config = Spa3RConfig(**sized(load_preset("spa3-vlm-tiny"))["spatial_config"])
    config = config.vggt_config if model_class is VGGTForGeometry else config
    model_class(config).save_pretrained(tmp_path)
    options = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": "cpu"}
    model = model_class.from_pretrained(tmp_path, dtype=torch.float32, **options)
    names = quantised_names(model)
    assert not [name for name in names if "vggt" in name or "camera_head" in name]
    assert bool(names) == (model_class is Spa3RForPreTraining)
    arguments = {} if model_class is VGGTForGeometry else {"num_context_views": 1}
    assert model(torch.rand(2, 2, 3, 28, 42), **arguments).intrinsics.isfinite().all()


@widths
def test_qlora_trains_beside_quantised_weights_and_merges(width, folder, instructions, tmp_path):
    # Without double quantisation, bitsandbytes 0.50.2 loses the scales of weights in 4 bits that answered on a CPU.
    options = LORA | {next(iter(WIDTHS[width])): "true", "use_bnb_nested_quant": "true", "dtype": "float32"}
    options |= {"max_steps": 2, "save_strategy": "no"}
    trainer = trainer_of(folder, instructions, tmp_path / "run", **options)
    names = quantised_names(trainer.model)
    assert names and all(".vlm." in name for name in names)
    weights = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    trainer.train()
    assert any(not torch.equal(weight, before[name]) for name, weight in weights.items() if "lora_" in name)

    inputs = batch_of(trainer.model.base_model.model)
    with torch.no_grad():
        expected = trainer.model.eval()(**inputs).logits
    save_tuned_model(trainer, [str(instructions)], tmp_path / "model")
    merged = Spa3VLMForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert not quantised_names(merged) and not hasattr(merged.config, "quantization_config")
    tokens = inputs["attention_mask"].bool()
    with torch.no_grad():
        given = merged.eval()(**inputs).logits
    assert torch.cosine_similarity(given[tokens], expected[tokens], dim=-1).min() > 0.999


def test_quantised_weights_without_lora_are_refused(folder, instructions, tmp_path):
    with pytest.raises(ValueError, match="`load_in_4bit`.*`use_peft`"):
        trainer_of(folder, instructions, tmp_path, load_in_4bit="true")
