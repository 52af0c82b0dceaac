"""`spa3r convert`: what it writes, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from recordings import Recording, starting_with
from safetensors.torch import load_file, save_file
from tiny_spa3_vlm import conversation, geometry_of, photo, prepare, tiny_config
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    DINOv3ViTModel,
    Qwen2_5_VLForConditionalGeneration,
)

from spa3r import Spa3RForPreTraining, Spa3RImageProcessor, Spa3RModel, Spa3VLMProcessor
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer
from spa3r.modeling_spa3r.vggt.modeling_vggt import VGGTForGeometry
from spa3r.trainers.integrations import cli


def convert(*arguments):
    cli.main(["convert", *map(str, arguments)])


def written(file: Path, content: dict) -> Path:
    file.write_text(json.dumps(content))
    return file


# Official checkpoints of VGGT, Spa3R and DINOv3.


def test_a_converted_spa3r_gives_the_latents_of_the_official_code(spa3r_recording, spa3r_state, vggt_sizes, tmp_path):
    torch.save({"state_dict": spa3r_state, "epoch": 3, "hyper_parameters": {"lr": 1e-3}}, tmp_path / "spa3r.ckpt")
    output = tmp_path / "made" / "spa3r"
    sizes = written(tmp_path / "sizes.json", {"vggt_config": vggt_sizes})
    convert("spa3r", tmp_path / "spa3r.ckpt", output, "--config", sizes)
    for loaded in (Spa3RForPreTraining.from_pretrained(output).model, Spa3RModel.from_pretrained(output)):
        latents = loaded.eval()(spa3r_recording.images).latents
        torch.testing.assert_close(latents, spa3r_recording.outputs["latents"], atol=1e-4, rtol=0)
    assert isinstance(AutoImageProcessor.from_pretrained(output), Spa3RImageProcessor)


def test_the_dtype_is_that_of_the_option(vggt_state, vggt_sizes, tmp_path):
    save_file(vggt_state, tmp_path / "model.safetensors")
    sizes = written(tmp_path / "sizes.json", vggt_sizes)
    convert("vggt", tmp_path / "model.safetensors", tmp_path / "vggt", "--dtype", "bfloat16", "--config", sizes)
    assert VGGTForGeometry.from_pretrained(tmp_path / "vggt").dtype == torch.bfloat16


def test_tensors_that_are_left_out_are_printed(dinov3_state, tmp_path, capsys):
    save_file(dinov3_state, tmp_path / "dinov3.safetensors")
    convert("dinov3", tmp_path / "dinov3.safetensors", tmp_path / "dinov3")
    assert "`rope_embed.periods`" in capsys.readouterr().out
    config = DINOv3ViTModel.from_pretrained(tmp_path / "dinov3").config
    assert config.num_register_tokens == dinov3_state["storage_tokens"].shape[1]


# The official Spa3-VLM.


@dataclass
class Official:
    """A folder in two shards without a tokenizer, and the options that convert it."""

    folder: Path
    config: dict
    options: list[str]


@pytest.fixture
def official(vlm_state, vlm_config, spatial_config, tmp_path) -> Official:
    folder = tmp_path / "official"
    folder.mkdir()
    names = sorted(vlm_state)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: vlm_state[name] for name in part}, folder / f"model-{number}.safetensors")
    written(folder / "config.json", vlm_config)
    return Official(folder, vlm_config, ["--config", str(written(tmp_path / "sizes.json", spatial_config))])


def test_a_converted_spa3_vlm_answers_as_the_official_code(vlm_recording: Recording, official, tmp_path):
    written(official.folder / "generation_config.json", {"repetition_penalty": 1.0, "max_length": 77})
    output = tmp_path / "made" / "spa3-vlm"
    convert("spa3-vlm", official.folder, output, *official.options)
    model, info = AutoModelForImageTextToText.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.generation_config.max_length == 77
    inputs = {name: vlm_recording.inputs[name] for name in ("input_ids", "pixel_values", "image_grid_thw")}
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
    inputs |= geometry_of(vlm_recording.inputs["geometry_images_u8"].float() / 255)
    tokens = model.generate(**inputs, max_new_tokens=vlm_recording.info["max_new_tokens"], do_sample=False)
    expected = vlm_recording.outputs["generated_ids"]
    assert torch.equal(tokens[:, -expected.shape[1] :], expected)


def test_a_folder_with_a_tokenizer_gets_a_processor(vlm_recording, official, tmp_path):
    byte_tokenizer().save_pretrained(official.folder)
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    ids_of_tokenizer = {name: getattr(tiny_config().vlm_config, name) for name in names}
    written(official.folder / "config.json", official.config | ids_of_tokenizer)
    output, images = tmp_path / "spa3-vlm", vlm_recording.inputs["geometry_images_u8"]
    convert("spa3-vlm", official.folder, output, *official.options, "--image-width", images.shape[-1])
    processor = AutoProcessor.from_pretrained(output)
    assert isinstance(processor, Spa3VLMProcessor) and processor.tokenizer.padding_side == "left"
    inputs = prepare(processor, conversation(images.numpy(), "Where?"))
    torch.testing.assert_close(inputs["pixel_values"], vlm_recording.inputs["pixel_values"], atol=1e-5, rtol=0)


def test_a_folder_without_a_tokenizer_gets_no_processor(official, tmp_path, capsys):
    convert("spa3-vlm", official.folder, tmp_path / "result", *official.options)
    assert "`make_processor`" in capsys.readouterr().out
    assert not (tmp_path / "result" / "processor_config.json").exists()


# Assembly.


@pytest.fixture(scope="module")
def qwen() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(1)
    return AutoModelForImageTextToText.from_config(tiny_config().vlm_config).eval()


@pytest.fixture(scope="module")
def parts(qwen, tmp_path_factory) -> Path:
    """A Qwen2.5-VL with a chat template of its own, and a pre-training checkpoint, decoder and teachers included."""
    folder = tmp_path_factory.mktemp("parts")
    qwen.save_pretrained(folder / "qwen")
    tokenizer = byte_tokenizer()
    tokenizer.padding_side, tokenizer.chat_template = "right", "{{ messages }}"
    tokenizer.save_pretrained(folder / "qwen")
    torch.manual_seed(3)
    Spa3RForPreTraining(tiny_config().spatial_config).save_pretrained(folder / "spa3r")
    return folder


def assemble(output: Path, vlm: Path | str, spa3r: Path | None, *options: str):
    given = [] if spa3r is None else ["--spa3r", spa3r]
    convert("assemble", output, "--vlm", vlm, *given, "--image-width", 56, *options)


def answers(folder: Path) -> bool:
    """Whether the model of a folder gives an answer of three tokens to what its processor makes of a photo."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    inputs = prepare(AutoProcessor.from_pretrained(folder), conversation([photo(0)], "Is it there?"))
    assert model(**inputs).logits.isfinite().all()
    return model.generate(**inputs, max_new_tokens=3, min_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3


@pytest.fixture(scope="module")
def assembled(parts) -> Path:
    assemble(parts / "spa3-vlm-mine", parts / "qwen", parts / "spa3r")
    return parts / "spa3-vlm-mine"


def test_an_assembled_folder_holds_every_weight_of_both_parts(qwen, parts, assembled):
    model, info = AutoModelForImageTextToText.from_pretrained(assembled, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    state = model.state_dict()
    encoder = starting_with("model.", Spa3RForPreTraining.from_pretrained(parts / "spa3r").state_dict())
    expected = {f"model.spatial_encoder.{name}": tensor for name, tensor in encoder.items()}
    expected |= {f"model.vlm.{name}": tensor for name, tensor in qwen.model.state_dict().items()}
    expected["lm_head.weight"] = qwen.lm_head.weight
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert all(name in expected or name.startswith("model.fusion.") for name in state)


def test_an_assembled_folder_answers_by_its_own_chat_template(assembled):
    processor = AutoProcessor.from_pretrained(assembled)
    assert processor.image_processor.image_width == 56 and processor.tokenizer.padding_side == "left"
    assert "{% generation %}" in processor.chat_template
    assert answers(assembled)


def test_an_assembled_folder_has_code_and_card_and_names_no_folder_of_the_machine(parts, assembled):
    files = {file.name: file.read_bytes() for file in assembled.iterdir()}
    assert files.keys() >= {"modeling_spa3_vlm.py", "processing_spa3_vlm.py", "configuration_spa3_vlm.py", "README.md"}
    card = json.loads(files["card.json"])
    assert card["name"] == "spa3-vlm-mine"
    assert card["origins"] == {"vlm": "qwen", "vggt": "spa3r", "spatial_encoder": "spa3r", "fusion": None}
    assert not [name for name, content in files.items() if str(parts).encode() in content]


def test_a_model_without_a_scene_needs_no_spa3r(parts, tmp_path):
    assemble(tmp_path / "result", parts / "qwen", None, "--fusion", "none")
    assert json.loads((tmp_path / "result" / "card.json").read_text())["origins"] == {"vlm": "qwen"}
    assert answers(tmp_path / "result")


def test_the_vlm_of_another_spa3_vlm_can_be_used_again(qwen, parts, tmp_path):
    assemble(tmp_path / "base", parts / "qwen", None, "--fusion", "none")
    assemble(tmp_path / "result", tmp_path / "base", parts / "spa3r")
    state = load_file(tmp_path / "result" / "model.safetensors")
    assert all(torch.equal(state[f"model.vlm.{name}"], tensor) for name, tensor in qwen.model.state_dict().items())
    origins = json.loads((tmp_path / "result" / "card.json").read_text())["origins"]
    assert (origins["vlm"], origins["fusion"]) == ("base", None)


def test_a_preset_instead_of_a_vlm_is_untrained(parts, tmp_path):
    assemble(tmp_path / "result", "spa3-vlm-tiny", parts / "spa3r", "--fusion", "append")
    assert json.loads((tmp_path / "result" / "card.json").read_text())["origins"]["vlm"] is None
    assert answers(tmp_path / "result")


def test_the_seed_decides_new_weights(parts, tmp_path):
    def weights(name: str, seed: str) -> bytes:
        assemble(tmp_path / name, "spa3-vlm-tiny", parts / "spa3r", "--seed", seed)
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert weights("first", "0") == weights("again", "0") != weights("other", "1")


@pytest.mark.parametrize(("options", "dtype"), [((), torch.bfloat16), (("--dtype", "float16"), torch.float16)])
def test_the_dtype_is_that_of_the_vlm_or_of_the_option(parts, tmp_path, options, dtype):
    half = shutil.copytree(parts / "qwen", tmp_path / "half")
    AutoModelForImageTextToText.from_pretrained(half, dtype=torch.bfloat16).save_pretrained(half)
    assemble(tmp_path / "result", half, parts / "spa3r", *options)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "result").dtype == dtype


# Refusals.


@pytest.fixture
def refusal(capsys) -> Callable[..., str]:
    """Runs `spa3r convert`, which must fail, and gives what it says."""

    def run(*arguments) -> str:
        with pytest.raises(SystemExit) as exit:
            convert(*arguments)
        assert exit.value.code not in (None, 0)
        return f"{exit.value} {capsys.readouterr().err}"

    return run


@pytest.fixture(scope="module")
def broken_qwen(parts):
    """Three folders of a Qwen2.5-VL that lacks a weight, a part of a weight, or its tokenizer."""
    state = load_file(parts / "qwen" / "model.safetensors")
    key = next(name for name in state if name.endswith("norm.weight"))
    rest = {name: tensor for name, tensor in state.items() if name != key}
    for name, weights in {"missing": rest, "shape": rest | {key: state[key][:3].clone()}, "tokenizer": state}.items():
        folder = shutil.copytree(parts / "qwen", parts / name)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (parts / "tokenizer" / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    ("vlm", "spa3r", "options", "named"),
    [
        pytest.param("nowhere", "spa3r", (), "`nowhere`", id="VLM: neither folder nor preset"),
        pytest.param("{}/nowhere", "spa3r", (), "/nowhere`", id="VLM: no such folder"),
        pytest.param("{}/spa3r", "spa3r", (), "`spa3r`", id="VLM: another model"),
        pytest.param("spa3-vlm-4b", "spa3r", (), "`tokenizer`", id="VLM: preset with a large vocabulary"),
        pytest.param("{}/tokenizer", "spa3r", (), "/tokenizer`", id="VLM: no tokenizer"),
        pytest.param("{}/missing", "spa3r", (), "norm.weight`: missing", id="VLM: missing weight"),
        pytest.param("{}/shape", "spa3r", (), "norm.weight`: shape (3,)", id="VLM: weight of another shape"),
        pytest.param("{}/qwen", "nowhere", (), "/nowhere`", id="Spa3R: no such folder"),
        pytest.param("{}/qwen", "qwen", (), "`qwen2_5_vl`", id="Spa3R: another model"),
        pytest.param("{}/qwen", "spa3r", ("--image-width", "15"), "`image_width`", id="image width"),
        pytest.param(
            *("{}/qwen", "spa3r", ("--fusion=append", "--spatial-representation=vggt"), "`fusion='append'`"),
            id="settings that contradict each other",
        ),
    ],
)
def test_a_wrong_assembly_is_refused_and_leaves_nothing(
    broken_qwen, parts, tmp_path, refusal, vlm, spa3r, options, named
):
    given = ["--vlm", vlm.format(parts), "--spa3r", parts / spa3r]
    assert named in refusal("assemble", tmp_path / "made" / "result", *given, *options)
    assert not (tmp_path / "made").exists()


def test_a_model_with_a_scene_but_without_a_spa3r_is_refused(parts, tmp_path, refusal):
    said = refusal("assemble", tmp_path / "result", "--vlm", parts / "qwen")
    assert "`--spa3r`" in said and "`cross_attention`" in said


@pytest.mark.parametrize(
    ("command", "source", "output", "named"),
    [
        pytest.param("vggt", "nowhere.pt", "result", "/nowhere.pt`", id="no such file"),
        pytest.param("spa3-vlm", "notes.txt", "result", "config.json`", id="a file instead of a folder"),
        pytest.param("vggt", "notes.txt", "", "`{}`", id="output that is not empty"),
    ],
)
def test_a_wrong_input_or_output_is_refused(tmp_path, refusal, command, source, output, named):
    (tmp_path / "notes.txt").write_text("mine")
    assert named.format(tmp_path) in refusal(command, tmp_path / source, tmp_path / output)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("command", ["vggt", "spa3r", "dinov3", "spa3-vlm", "assemble"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        convert(command, "--help")
    assert "OUTPUT" in capsys.readouterr().out
