"""Damaged checkpoints: whatever the libraries raise, one sentence names the folder and the file."""

import json
import math
import shutil

import pytest
from refusals import refused
from safetensors.torch import load_file, save_file
from tiny_spa3_vlm import save_tiny_vlm

from spa3r import Spa3VLMForConditionalGeneration
from spa3r.configuration import Spa3VLMConfig
from spa3r.modeling_spa3r.checkpoints.loading import (
    load_config,
    load_processor,
    load_spa3_vlm,
    load_whole,
    require_checkpoint,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_tiny_vlm(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "damaged")


def replaced(**changes):
    """A JSON file with some of its values replaced."""
    return lambda content: json.dumps(json.loads(content) | changes).encode()


def half(content):
    return content[: len(content) // 2]


def constant(content):
    return lambda _: content


PROCESSOR = [
    ("tokenizer.json", half),
    ("tokenizer.json", constant(b"")),
    ("tokenizer.json", constant(b"[]")),
    ("tokenizer.json", replaced(added_tokens=True)),
    ("tokenizer_config.json", half),
    ("tokenizer_config.json", constant(b"3")),
    ("tokenizer_config.json", constant(b"\xff\xfe{}")),
    ("tokenizer_config.json", replaced(pad_token=1e30)),
    ("tokenizer_config.json", replaced(pad_token=None)),
    ("processor_config.json", half),
    ("processor_config.json", replaced(image_processor=[1])),
    ("chat_template.jinja", constant(b"\xff\xfe")),
    ("chat_template.jinja", constant(b"{% for %}")),
    ("chat_template.jinja", constant(b"{{ raise_exception('no') }}")),
]
CONFIG = [
    ("config.json", constant(b"")),
    ("config.json", constant(b"null")),
    ("config.json", replaced(spatial_config=3)),
    ("config.json", replaced(vlm_config={"model_type": 3})),
    ("config.json", replaced(fusion=[])),
]
WEIGHTS = [
    ("model.safetensors", half),
    ("model.safetensors", constant(b"")),
    ("model.safetensors", lambda content: content + content),
    ("model.safetensors", lambda content: b"\xff" + content[1:]),
]


def damage(folder, name, change):
    (folder / name).write_bytes(change((folder / name).read_bytes()))


def ids(cases):
    return [f"{name}-{index}" for index, (name, _) in enumerate(cases)]


@pytest.mark.parametrize(("name", "change"), PROCESSOR, ids=ids(PROCESSOR))
def test_a_damaged_processor_is_refused_before_it_is_used(folder, name, change):
    damage(folder, name, change)
    with refused(str(folder)):
        load_processor(str(folder))


@pytest.mark.parametrize(("name", "change"), CONFIG, ids=ids(CONFIG))
def test_a_damaged_configuration_is_refused(folder, name, change):
    damage(folder, name, change)
    with refused(str(folder)):
        load_config(Spa3VLMConfig, str(folder))


@pytest.mark.parametrize(("name", "change"), WEIGHTS, ids=ids(WEIGHTS))
def test_damaged_weights_are_refused(folder, name, change):
    damage(folder, name, change)
    with refused(str(folder), f"`{name}`"):
        load_spa3_vlm(str(folder))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("pad_token_id", float("nan")),
        ("eos_token_id", [1, 10**30]),
        ("eos_token_id", -3),
        ("temperature", float("inf")),
    ],
)
def test_settings_of_generation_that_fail_while_answering_are_refused(folder, setting, value):
    damage(folder, "generation_config.json", replaced(**{setting: value}))
    with refused(str(folder), f"`{setting}`"):
        load_spa3_vlm(str(folder))


def test_a_processor_whose_tokens_have_other_ids_is_refused(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["content"] = token["content"].replace("image_pad", "picture_pad")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with refused(str(folder), "<|image_pad|>"):
        load_processor(str(folder))


@pytest.mark.parametrize("shard", ["../../escape.safetensors", "gone.safetensors", 3])
def test_an_index_names_files_beside_it_alone(folder, shard):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": shard}}))
    with refused(str(index)):
        require_checkpoint(str(folder))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("weight", ["model.vlm.language_model.norm.weight", "model.spatial_encoder.latent_queries"])
def test_weights_that_are_not_finite_are_refused_by_name(folder, weight, value):
    weights = load_file(folder / "model.safetensors")
    (name,) = [name for name in weights if name.endswith(weight.removeprefix("model."))]
    weights[name].view(-1)[0] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with refused(weight, str(folder)):
        load_spa3_vlm(str(folder))
    with refused(weight, str(folder)):
        load_whole(Spa3VLMForConditionalGeneration, str(folder))


def test_a_missing_package_is_not_blamed_on_the_checkpoint(folder, monkeypatch):
    def fail(*_, **__):
        raise ImportError("No module named 'tokenizers'")

    monkeypatch.setattr(Spa3VLMConfig, "from_pretrained", fail)
    with refused("tokenizers", error=ImportError):
        load_config(Spa3VLMConfig, str(folder))
