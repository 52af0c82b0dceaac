"""The model: equality with the base VLM, batches, latents, checkpoints, training, attention and devices."""

import pytest
import torch
from recordings import capture
from refusals import refused
from safetensors.torch import load_file, save_file
from tiny_spa3_vlm import (
    CONVERSATIONS,
    GEOMETRY,
    TEXT,
    VARIANTS,
    batch_of,
    latents_of,
    tiny_config,
    tiny_model,
    views_of,
    without,
)
from transformers import AutoModel, AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration
from transformers.cache_utils import StaticCache

from spa3r import Spa3RForPreTraining, Spa3VLMForConditionalGeneration, Spa3VLMModel
from spa3r.configuration import Spa3VLMConfig


@torch.no_grad()
def logits(model, **inputs):
    return model(**inputs).logits


def rows(inputs, tensor):
    """The entries of each row's tokens, without padding."""
    return [row[mask.bool()] for row, mask in zip(tensor, inputs["attention_mask"], strict=True)]


def gradients(model, **inputs):
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def qwen_of(model):
    """The base VLM with the same weights."""
    qwen = Qwen2_5_VLForConditionalGeneration._from_config(model.config.vlm_config, dtype=model.dtype).eval()
    qwen.model.load_state_dict(model.model.vlm.state_dict())
    qwen.lm_head.load_state_dict(model.lm_head.state_dict())
    return qwen


# The base VLM.


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    return Spa3VLMForConditionalGeneration(tiny_config()).eval()


@pytest.fixture(scope="module")
def without_adapter(fresh, tmp_path_factory):
    """A checkpoint without the weights of the adapter."""
    folder = tmp_path_factory.mktemp("without_adapter")
    fresh.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".fusion." not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def assert_logits_of_base_vlm(model, batch):
    plain = without(batch, *GEOMETRY, "num_views")
    assert torch.equal(logits(model, **batch), logits(qwen_of(model), **plain))


def test_a_fresh_adapter_leaves_the_logits_of_the_base_vlm(fresh, batch):
    assert_logits_of_base_vlm(fresh, batch)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"device_map": {"": "cpu"}}, {"dtype": torch.bfloat16}, {"dtype": "auto", "device_map": "auto"}],
    ids=["plain", "device_map", "bfloat16", "auto"],
)
def test_an_adapter_missing_from_a_checkpoint_leaves_the_logits_of_the_base_vlm(without_adapter, batch, kwargs):
    model, info = Spa3VLMForConditionalGeneration.from_pretrained(without_adapter, output_loading_info=True, **kwargs)
    assert {name.split(".")[1] for name in info["missing_keys"]} == {"fusion"}
    assert_logits_of_base_vlm(model, batch)


def test_an_adapter_built_on_the_meta_device_leaves_the_logits_of_the_base_vlm(fresh, batch):
    with torch.device("meta"):
        model = Spa3VLMForConditionalGeneration(fresh.config)
    model.to_empty(device="cpu")
    model.init_weights()
    assert model.model.fusion.adapter.fc2.weight.eq(0).all()
    weights = {name: tensor for name, tensor in fresh.state_dict().items() if ".fusion." not in name}
    model.load_state_dict(weights, strict=False)
    assert_logits_of_base_vlm(model.eval(), batch)


def test_a_trained_adapter_changes_the_logits_of_rows_with_images(model, batch):
    base = logits(qwen_of(model), **without(batch, *GEOMETRY, "num_views"))
    pairs = zip(batch["num_views"], rows(batch, logits(model, **batch)), rows(batch, base), strict=True)
    for num_views, row, expected in pairs:
        assert (row - expected).abs().max() > 0.1 if num_views else torch.equal(row, expected)


def test_without_fusion_the_logits_are_those_of_the_base_vlm(batch):
    model = tiny_model(fusion="none")
    assert model.model.spatial_encoder is None
    assert_logits_of_base_vlm(model, batch)


def test_without_geometry_the_logits_are_those_of_the_base_vlm(model, batch):
    assert_logits_of_base_vlm(model, without(batch, *GEOMETRY, "num_views"))


# Batches and fusion.


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_row_of_a_batch_equals_the_row_alone(variant, padding_side):
    model = tiny_model(**VARIANTS[variant])
    batch = batch_of(model, padding_side=padding_side)
    for row, alone in zip(rows(batch, logits(model, **batch)), CONVERSATIONS, strict=True):
        torch.testing.assert_close(row, logits(model, **batch_of(model, alone))[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["paper", "append", "vggt"])
def test_the_geometry_of_a_scene_changes_only_its_own_row(variant):
    model = tiny_model(**VARIANTS[variant])
    batch = batch_of(model)
    geometry = batch["pixel_values_geometry"].clone()
    own = sum(view[0].numel() for view in views_of(batch)[:2])
    geometry[:own] = 1 - geometry[:own]
    before, after = logits(model, **batch), logits(model, **{**batch, "pixel_values_geometry": geometry})
    difference = (before - after).abs().amax((1, 2))
    assert difference[0] > 0.1 and difference[1:].max() < 1e-6


def test_cross_attention_fusion_computes_the_equations_of_the_paper(model):
    fusion, size = model.model.fusion, model.config.get_text_config().hidden_size
    generator = torch.Generator().manual_seed(0)
    tokens, latents = torch.randn(6, size, generator=generator), torch.randn(8, 32, generator=generator)
    attention, projected = fusion.cross_attention, fusion.projector(latents)
    states = attention.q_proj(tokens), attention.k_proj(projected), attention.v_proj(projected)
    query, key, value = (each.unflatten(-1, (4, -1)).transpose(0, 1) for each in states)
    weights = (attention.q_norm(query) @ attention.k_norm(key).mT / (size / 4) ** 0.5).softmax(-1)
    queried = fusion.norm(attention.proj((weights @ value).transpose(0, 1).flatten(1)))
    hidden = torch.nn.functional.gelu(fusion.adapter.fc1(queried))
    expected = tokens + fusion.adapter.fc2(hidden) * torch.sigmoid(fusion.gate(queried))
    torch.testing.assert_close(fusion([tokens], [latents])[0], expected, atol=1e-5, rtol=1e-5)


def test_appended_latents_follow_the_last_image():
    model = tiny_model(fusion="append")
    scene = batch_of(model, CONVERSATIONS[0])
    features, latents = model.get_image_features(**without(scene, *TEXT)), latents_of(model, scene)[0]
    assert [len(tokens) for tokens in features.pooler_output] == [4, 4 + 8]
    torch.testing.assert_close(features.pooler_output[1][4:], model.model.fusion.projector(latents))


def test_vggt_latents_are_the_tokens_of_all_views_before_the_last_layer(scene):
    model = tiny_model(spatial_representation="vggt")
    height, width = scene["geometry_sizes"][0].tolist()
    calls = []
    for blocks in (model.model.spatial_encoder.frame_blocks, model.model.spatial_encoder.global_blocks):
        capture(blocks[0], calls)
    latents = latents_of(model, scene)
    by_view = [tokens.reshape(2, -1, 32)[:, 5:] for _, tokens in calls]
    assert torch.equal(latents[0], torch.cat(by_view, dim=-1).flatten(0, 1))
    assert latents.shape[1] == 2 * (height // 14) * (width // 14)


# Scenes that are encoded once.


@pytest.mark.parametrize("representation", ["spa3r", "vggt"])
def test_small_scenes_of_equal_shape_are_encoded_in_one_call(representation):
    model = tiny_model(spatial_representation=representation)
    encoder = model.model.spatial_encoder
    scenes = [torch.rand(views, 3, 28, size) for views, size in ((2, 42), (3, 42), (2, 42), (2, 28), (2, 42))]
    singles = [encoder([scene])[0] for scene in scenes]
    calls = []
    vggt = getattr(encoder, "vggt", encoder)
    vggt.frame_blocks[0].register_forward_hook(lambda *_: calls.append(1))
    for together, single in zip(encoder(scenes), singles, strict=True):
        torch.testing.assert_close(together, single, rtol=0, atol=1e-5)
    assert len(calls) == 3


def test_encoded_latents_give_the_logits_of_the_geometry_even_from_a_file(model, batch, tmp_path):
    latents = latents_of(model, batch)
    assert latents.shape == (3, 8, 32)  # none of the row without images
    save_file({"spatial_latents": latents}, tmp_path / "scenes.safetensors")
    loaded = load_file(tmp_path / "scenes.safetensors")
    assert torch.equal(logits(model, **without(batch, *GEOMETRY), **loaded), logits(model, **batch))


def test_latents_are_cast_to_the_dtype_of_the_model(batch):
    model = tiny_model().bfloat16()
    latents = latents_of(model, batch).float()
    assert torch.equal(logits(model, **without(batch, *GEOMETRY), spatial_latents=latents), logits(model, **batch))


def test_given_latents_take_precedence_over_geometry(model, scene):
    latents = model.encode_scene(1 - scene["pixel_values_geometry"], scene["geometry_sizes"])
    expected = logits(model, **without(scene, *GEOMETRY), spatial_latents=latents)
    assert torch.equal(logits(model, **scene, spatial_latents=latents), expected)


# Checkpoints.


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "spa3-vlm-4b"
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "auto_class, loaded_class",
    [(AutoModelForImageTextToText, Spa3VLMForConditionalGeneration), (AutoModel, Spa3VLMModel)],
    ids=["with a head", "without"],
)
def test_auto_classes_load_a_folder_exactly(auto_class, loaded_class, model, checkpoint):
    loaded, info = auto_class.from_pretrained(checkpoint, output_loading_info=True)
    assert type(loaded) is loaded_class and type(loaded.config) is Spa3VLMConfig
    assert not any(info.values()) and not loaded.training
    expected = (model if loaded_class is Spa3VLMForConditionalGeneration else model.model).state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_a_checkpoint_without_a_head_loads_into_the_model_with_a_head(model, tmp_path):
    model.model.save_pretrained(tmp_path)
    loaded, info = Spa3VLMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"lm_head.weight"} and not info["unexpected_keys"]
    assert torch.equal(loaded.model.fusion.gate.weight, model.model.fusion.gate.weight)


def test_a_checkpoint_has_the_names_of_the_modules(model, checkpoint):
    names = set(load_file(checkpoint / "model.safetensors"))
    assert names == set(model.state_dict())
    parts = ("model.vlm.visual.", "model.vlm.language_model.", "model.spatial_encoder.", "model.fusion.", "lm_head.")
    assert all(name.startswith(parts) for name in names)
    assert all(any(name.startswith(part) for name in names) for part in parts)


def test_tied_embeddings_are_stored_once_and_stay_tied(tmp_path, scene):
    model = tiny_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    torch.testing.assert_close(logits(loaded, **scene), logits(model, **scene), atol=1e-5, rtol=0)


def test_the_library_finds_the_language_model(model):
    decoder = model.model.vlm.language_model
    for part in (model, model.model):
        assert part.get_decoder() is decoder
        assert part.get_input_embeddings() is decoder.embed_tokens


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_can_be_resized(tied, scene, tmp_path):
    model = tiny_model(tie_word_embeddings=tied)
    expected = logits(model, **scene)
    model.resize_token_embeddings(270)
    assert model.config.get_text_config().vocab_size == 270
    model.save_pretrained(tmp_path)
    loaded = Spa3VLMForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight.shape == loaded.get_input_embeddings().weight.shape == (270, 32)
    torch.testing.assert_close(logits(loaded, **scene)[..., :263], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("auto_class", [Spa3VLMForConditionalGeneration, Spa3VLMModel])
@pytest.mark.parametrize("other", ["spa3r", "qwen2_5_vl"])
def test_a_checkpoint_of_another_architecture_is_refused(auto_class, other, model, tmp_path):
    models = {"spa3r": lambda: Spa3RForPreTraining(model.config.spatial_config), "qwen2_5_vl": lambda: qwen_of(model)}
    models[other]().save_pretrained(tmp_path)
    with refused(f"`{other}`", "`spa3_vlm`"):
        auto_class.from_pretrained(tmp_path)


# Training.


@pytest.fixture(scope="module")
def labelled(batch):
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels = labels.masked_fill(batch["mm_token_type_ids"] == 1, -100)
    return {**batch, "labels": labels}


def test_the_loss_is_the_cross_entropy_of_the_next_token(model, labelled):
    predicted, wanted = logits(model, **labelled)[:, :-1], labelled["labels"][:, 1:]
    probabilities = predicted.double().log_softmax(-1)[wanted >= 0].gather(1, wanted[wanted >= 0][:, None])
    torch.testing.assert_close(model(**labelled).loss.double(), -probabilities.mean(), atol=1e-5, rtol=0)


def test_the_loss_can_be_averaged_over_the_tokens_of_several_batches(model, labelled):
    assert model.accepts_loss_kwargs
    number = (labelled["labels"][:, 1:] >= 0).sum()
    loss = model(**labelled, num_items_in_batch=torch.tensor(1000)).loss
    torch.testing.assert_close(loss, model(**labelled).loss * number / 1000)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_weights_but_the_frozen_encoders_get_a_gradient(variant):
    model = tiny_model(**VARIANTS[variant]).train()
    model.freeze_encoders()
    inputs = batch_of(model)
    trained = set(gradients(model, **inputs, labels=inputs["input_ids"]))
    everything = {name for name, _ in model.named_parameters()}
    assert everything - trained == {n for n in everything if ".visual." in n or ".spatial_encoder." in n}


def test_the_spatial_encoder_stays_in_eval_mode(model):
    model.train()
    assert model.model.fusion.training and not model.model.spatial_encoder.training
    model.eval()


def test_gradient_checkpointing_changes_no_gradient(labelled):
    model = tiny_model().train()
    model.freeze_encoders()
    expected = gradients(model, **labelled)
    model.activation_checkpointing_enable()
    assert model.model.vlm.language_model.layers[0].gradient_checkpointing
    actual = gradients(model, **labelled)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)


def test_text_without_images_trains_only_the_language_model(model):
    inputs = batch_of(model, CONVERSATIONS[1])
    trained = gradients(model, **inputs, labels=inputs["input_ids"])
    language = {name for name, _ in model.named_parameters() if "language_model" in name or "lm_head" in name}
    assert trained.keys() <= language and len(trained) > len(language) // 2


# Attention, precision, devices.


def implementations(model):
    modules = {
        "text": model.model.vlm.language_model.layers[0].self_attn,
        "vision": model.model.vlm.visual.blocks[0].attn,
        "spa3r": model.model.spatial_encoder.encoder.layers[0].attention,
        "vggt": model.model.spatial_encoder.vggt.frame_blocks[0].attention,
        "fusion": model.model.fusion.cross_attention,
    }
    return {name: module.config._attn_implementation for name, module in modules.items()}


EAGER = dict.fromkeys(("text", "vision", "spa3r", "vggt", "fusion"), "eager")
TEXT_ONLY = {"": "eager", "vlm_config": {"text_config": "sdpa", "vision_config": "eager"}, "spatial_config": "eager"}


@pytest.mark.parametrize(
    "asked, sdpa",
    [
        ("eager", []),
        ({"": "eager", "vlm_config": "sdpa"}, ["text", "vision", "spa3r", "vggt"]),
        (TEXT_ONLY, ["text"]),
    ],
)
def test_each_submodule_gets_its_attention_implementation(asked, sdpa, checkpoint):
    loaded = Spa3VLMForConditionalGeneration.from_pretrained(checkpoint, attn_implementation=asked)
    assert implementations(loaded) == EAGER | dict.fromkeys(sdpa, "sdpa")


def test_the_attention_implementation_can_be_changed_after_loading(checkpoint):
    loaded = Spa3VLMForConditionalGeneration.from_pretrained(checkpoint)
    loaded.set_attn_implementation("eager")
    assert implementations(loaded) == EAGER


def test_eager_attention_equals_sdpa(model, batch, checkpoint):
    eager = Spa3VLMForConditionalGeneration.from_pretrained(checkpoint, attn_implementation="eager")
    pairs = zip(rows(batch, logits(eager, **batch)), rows(batch, logits(model, **batch)), strict=True)
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_close_to_float32(variant):
    model = tiny_model(**VARIANTS[variant])
    batch = batch_of(model)
    expected = rows(batch, logits(model, **batch))
    with torch.autocast("cpu", torch.bfloat16):
        autocast = rows(batch, logits(model, **batch))
    for half in (autocast, rows(batch, logits(model.bfloat16(), **batch))):
        for row, full in zip(half, expected, strict=True):
            assert row.dtype is torch.bfloat16
            assert torch.cosine_similarity(row.float(), full, dim=-1).min() > 0.98


def test_a_model_spread_over_memory_and_disk_gives_the_same_logits(model, batch, checkpoint, tmp_path):
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    spread = Spa3VLMForConditionalGeneration.from_pretrained(
        checkpoint, device_map="auto", max_memory={"cpu": 3 * size // 4}, offload_folder=tmp_path
    )
    assert {"cpu", "disk"} <= set(map(str, spread.hf_device_map.values()))
    torch.testing.assert_close(logits(spread, **batch), logits(model, **batch), atol=1e-5, rtol=0)


def test_no_layer_is_split_between_devices(model):
    accelerate = pytest.importorskip("accelerate")
    whole = ("Block", "DecoderLayer", "Fusion")
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    # For many borders between the two devices.
    for first in range(size // 20, size, size // 20):
        devices = accelerate.infer_auto_device_map(
            model, max_memory={0: first, 1: size}, no_split_module_classes=model._no_split_modules
        )
        for name, module in model.named_modules():
            if type(module).__name__.endswith(whole):
                assert not [key for key in devices if key.startswith(f"{name}.")]


def test_a_decoding_step_compiles_without_graph_breaks(model, scene):
    def step(run):
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=128)
        with torch.no_grad():
            first = model(**scene, past_key_values=cache, use_cache=True)
            token = first.logits[:, -1:].argmax(-1)
            length = scene["input_ids"].shape[1]
            positions = (length + model.model.rope_deltas).expand(3, 1, 1)
            return run(input_ids=token, position_ids=positions, past_key_values=cache, use_cache=True).logits

    compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(compiled), step(model), atol=1e-5, rtol=0)


def test_text_without_images_compiles_without_graph_breaks(model):
    inputs = batch_of(model, CONVERSATIONS[1])
    compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)


# Waiting for an accelerator.

SIZES = ("image_grid_thw", "geometry_sizes", "num_views")


class OnDevice(torch.Tensor):
    """Stands for a tensor on an accelerator: notes when the host asks for values of it, or of what follows from it."""

    READS = (torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.__bool__)

    @staticmethod
    def note(): ...

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        result = super().__torch_function__(function, types, arguments, options or {})
        source = next((given for given in arguments if isinstance(given, cls)), None)
        if function in cls.READS:
            source.note()
            return result.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else result
        for part in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(part, cls) and source is not None:
                part.note = source.note
        return result


def on_device(inputs, reads):
    """The inputs, of which the sizes note in `reads` when the host asks for their values."""
    given = dict(inputs)
    for name in SIZES:
        given[name] = inputs[name].clone().as_subclass(OnDevice)
        given[name].note = lambda name=name: reads.append(name)
    return given


def test_forward_reads_each_size_once(model, batch):
    features = model.model.encode_images(batch["pixel_values"], batch["image_grid_thw"])
    reads = []

    logits(model, **on_device(without(batch, "pixel_values"), reads), vision_features=features)

    assert sorted(reads) == sorted(SIZES)


def test_image_features_read_the_sizes_of_a_scene_once(model, batch):
    reads = []

    with torch.no_grad():
        model.get_image_features(**on_device(without(batch, *TEXT), reads))

    assert [reads.count(name) for name in ("geometry_sizes", "num_views")] == [1, 1]


@pytest.mark.parametrize("by", ["argument", "configuration"])
def test_return_dict_false_returns_a_tuple(by, scene):
    model = tiny_model()
    expected = logits(model, **scene)
    if by == "configuration":
        model.config.return_dict = False
    output = model(**scene, **({"return_dict": False} if by == "argument" else {}))
    assert isinstance(output, tuple) and torch.equal(output[0], expected)


def test_hidden_states_and_attentions_are_returned_on_request(scene, checkpoint):
    model = Spa3VLMForConditionalGeneration.from_pretrained(checkpoint, attn_implementation="eager")
    output = model(**scene, output_hidden_states=True, output_attentions=True)
    assert (len(output.hidden_states), len(output.attentions)) == (3, 2)


def test_logits_to_keep_selects_positions(model, scene):
    everything = logits(model, **scene)
    torch.testing.assert_close(logits(model, **scene, logits_to_keep=3), everything[:, -3:])
    torch.testing.assert_close(logits(model, **scene, logits_to_keep=torch.tensor([1, 5])), everything[:, [1, 5]])


@pytest.mark.parametrize("variant", ["paper", "append", "vggt"])
def test_text_without_images_gives_the_adapter_a_zero_gradient_in_training(variant):
    # Ranks reduce the gradients of the same weights, whatever is in their batches.
    model = tiny_model(**VARIANTS[variant]).train()
    text = batch_of(model, CONVERSATIONS[1])
    loss = model(**text, labels=text["input_ids"]).loss
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.model.fusion.parameters())
    assert loss.item() == pytest.approx(model.eval()(**text, labels=text["input_ids"]).loss.item(), rel=1e-6)
