"""Generation with Spa3-VLM: its tokens in every decoding mode, and how often images are encoded."""

import threading

import pytest
import torch
from refusals import refused
from tiny_spa3_vlm import (
    CONVERSATIONS,
    GEOMETRY,
    TEXT,
    VARIANTS,
    batch_of,
    latents_of,
    only,
    photo,
    tiny_model,
    tiny_processor,
    without,
)
from transformers import AutoModelForMultimodalLM, DynamicCache, StaticCache, TextIteratorStreamer, pipeline
from transformers.utils import is_torchvision_available

from spa3r import Spa3VLMForConditionalGeneration

MODES = {
    "greedy": {},
    "no_cache": {"use_cache": False},
    "static_cache": {"cache_implementation": "static", "disable_compile": True},
    "chunked_prefill": {"prefill_chunk_size": 7},
    "prompt_lookup": {"prompt_lookup_num_tokens": 2},
}
NUM_TOKENS = 8


def make_model(**changes) -> Spa3VLMForConditionalGeneration:
    """A tiny model that never stops before `NUM_TOKENS`, so all rows have one length."""
    model = tiny_model(**changes)
    model.generation_config.eos_token_id = None
    return model


def generate(model, inputs, **kwargs) -> torch.Tensor:
    """New tokens, greedy by default."""
    kwargs = {"max_new_tokens": NUM_TOKENS, "do_sample": False} | kwargs
    return model.generate(**inputs, **kwargs)[:, inputs["input_ids"].shape[1] :]


def appended(inputs, tokens) -> dict[str, torch.Tensor]:
    """The inputs with these tokens of text at their end."""
    padding = (0, tokens.shape[1])
    return {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], tokens], dim=1),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], padding, value=1),
        "mm_token_type_ids": torch.nn.functional.pad(inputs["mm_token_type_ids"], padding),
    }


@torch.no_grad()
def append_greedily(model, inputs, number=NUM_TOKENS) -> torch.Tensor:
    """New tokens from one whole forward pass each, without `generate` and without a cache."""
    inputs = dict(inputs)
    for _ in range(number):
        inputs = appended(inputs, model(**inputs, use_cache=False).logits[:, -1].argmax(-1, keepdim=True))
    return inputs["input_ids"][:, -number:]


@pytest.fixture
def calls(model, monkeypatch):
    """Number of images of each call of the vision tower, and of views of each encoded scene."""
    seen = {"visual": [], "spatial_encoder": []}
    hooks = [
        model.model.vlm.visual.register_forward_hook(
            lambda module, args, kwargs, output: seen["visual"].append(len(kwargs["grid_thw"])), with_kwargs=True
        ),
        model.model.spatial_encoder.register_forward_hook(
            lambda module, args, output: seen["spatial_encoder"].extend(map(len, args[0]))
        ),
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_equal_those_of_whole_forward_passes(variant):
    model = make_model(**VARIANTS[variant])
    inputs = batch_of(model)
    assert generate(model, inputs).tolist() == append_greedily(model, inputs).tolist()


@pytest.mark.parametrize("mode", MODES)
def test_every_decoding_mode_gives_the_greedy_tokens(mode, model, batch, scene):
    inputs = scene if mode == "prompt_lookup" else batch  # which takes one row only
    assert generate(model, inputs, **MODES[mode]).tolist() == append_greedily(model, inputs).tolist()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("num_return_sequences", [1, 3])
def test_beams_of_a_batch_equal_those_of_its_rows(variant, num_return_sequences):
    model = make_model(**VARIANTS[variant])
    kwargs = {"num_beams": 3, "num_return_sequences": num_return_sequences}
    alone = [generate(model, batch_of(model, row), **kwargs).tolist() for row in CONVERSATIONS]
    assert generate(model, batch_of(model), **kwargs).tolist() == sum(alone, [])


def test_the_best_beam_is_at_least_as_likely_as_the_greedy_tokens(model, scene):
    def score(tokens):
        with torch.no_grad():
            predicted = model(**appended(scene, tokens)).logits[:, -tokens.shape[1] - 1 : -1].log_softmax(-1)
        return predicted.gather(2, tokens[..., None]).sum()

    # With one beam per word of the vocabulary, the search for two tokens is exhaustive.
    kwargs = {"max_new_tokens": 2}
    beams, greedy = generate(model, scene, num_beams=263, **kwargs), generate(model, scene, **kwargs)
    assert score(beams) >= score(greedy) - 1e-4


def test_sampled_tokens_are_drawn_from_the_logits(model, scene):
    torch.manual_seed(0)
    tokens = generate(model, scene, do_sample=True, top_k=0)
    torch.manual_seed(0)
    inputs = dict(scene)
    for token in tokens[0]:
        with torch.no_grad():
            probabilities = model(**inputs).logits[:, -1].softmax(-1)
        assert torch.multinomial(probabilities, 1).item() == token
        inputs = appended(inputs, token[None, None])


def test_samples_of_a_batch_come_from_the_logits_of_their_own_row(model, batch):
    kwargs = {"do_sample": True, "num_return_sequences": 3, "top_k": 0, "max_new_tokens": 2}
    output = model.generate(**batch, **kwargs, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad():
        expected = model(**batch).logits[:, -1]
    torch.testing.assert_close(output.logits[0], expected.repeat_interleave(3, dim=0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "kwargs",
    [*MODES.values(), {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}],
    ids=[*MODES, "beams", "samples"],
)
def test_every_image_and_scene_is_encoded_once(kwargs, model, calls):
    inputs = batch_of(model, CONVERSATIONS[0] if "prompt_lookup_num_tokens" in kwargs else CONVERSATIONS)
    generate(model, inputs, **kwargs)
    scenes = [2] if "prompt_lookup_num_tokens" in kwargs else [2, 1, 3]
    assert calls == {"visual": [sum(scenes)], "spatial_encoder": scenes}


def test_generate_in_training_mode_fuses_once():
    model, fused = make_model().train(), []
    model.model.fusion.register_forward_hook(lambda *_: fused.append(1))
    generate(model, batch_of(model))
    assert fused == [1]


@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_latents_instead_of_geometry_give_the_same_tokens_and_encode_no_scene(kwargs, model, batch, calls):
    expected = generate(model, batch, **kwargs)
    latents = latents_of(model, batch)
    calls["spatial_encoder"].clear()
    assert torch.equal(generate(model, without(batch, *GEOMETRY), spatial_latents=latents, **kwargs), expected)
    assert not calls["spatial_encoder"]


def test_features_instead_of_images_give_the_same_tokens_and_encode_no_image(model, batch, calls):
    expected = generate(model, batch)
    features = model.get_image_features(**without(batch, *TEXT))
    calls["visual"].clear()
    inputs = only(batch, *TEXT, "image_grid_thw")
    assert torch.equal(generate(model, inputs, mm_encoder_outputs={"image": features}), expected)
    assert not calls["visual"]


# Conversations that continue from a cache.


def longer(inputs, tokens, question):
    """The whole text of a conversation with its answer and another question, without the images."""
    question = torch.tensor([tiny_processor().tokenizer(question)["input_ids"]])
    return appended(appended(only(inputs, *TEXT), tokens), question)


@pytest.mark.parametrize("between", ["nothing", "text", "another_scene"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_conversation_continues_from_its_cache(variant, between):
    model = make_model(**VARIANTS[variant])
    scene = batch_of(model, CONVERSATIONS[0])
    cache = DynamicCache(config=model.config.get_text_config())
    tokens = generate(model, scene, past_key_values=cache)
    if between != "nothing":
        generate(model, batch_of(model, CONVERSATIONS[1 if between == "text" else 3]))
    whole = longer(scene, tokens, " And then?")
    expected = append_greedily(model, {**scene, **whole})
    assert generate(model, {**whole, "image_grid_thw": scene["image_grid_thw"]}, past_key_values=cache).equal(expected)


@pytest.mark.parametrize("row", [0, 1], ids=["scene", "text"])
def test_new_tokens_alone_continue_from_the_cache_of_the_last_call(row, model, batch):
    inputs = batch_of(model, CONVERSATIONS[row])
    generate(model, batch)
    cache = DynamicCache(config=model.config.get_text_config())
    tokens = generate(model, inputs, past_key_values=cache)
    whole = longer(inputs, tokens, " And then?")
    new = only(whole, "attention_mask") | {"input_ids": whole["input_ids"][:, cache.get_seq_length() :]}
    assert generate(model, new, past_key_values=cache).equal(append_greedily(model, {**inputs, **whole}))


@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
def test_a_text_with_its_own_cache_ignores_earlier_images(cache_class, model, batch):
    text = batch_of(model, CONVERSATIONS[1])
    generate(model, batch)
    config = model.config.get_text_config()
    cache = DynamicCache(config=config) if cache_class is DynamicCache else StaticCache(config, max_cache_len=128)
    assert generate(model, text, past_key_values=cache).equal(append_greedily(model, text))


def test_text_can_be_given_as_embeddings(model, batch):
    text = batch_of(model, CONVERSATIONS[1])
    generate(model, batch)
    inputs = {"inputs_embeds": model.get_input_embeddings()(text["input_ids"]), **only(text, "attention_mask")}
    assert model.generate(**inputs, max_new_tokens=NUM_TOKENS, do_sample=False).equal(append_greedily(model, text))


@pytest.mark.parametrize(
    "conversations, has_mask",
    [*((row, has_mask) for row in CONVERSATIONS[:2] for has_mask in (True, False)), (CONVERSATIONS, True)],
    ids=["scene", "scene_without_mask", "text", "text_without_mask", "batch"],
)
def test_a_hand_written_loop_with_a_cache_gives_the_greedy_tokens(conversations, has_mask, model, batch):
    inputs = batch_of(model, conversations)
    expected = append_greedily(model, inputs)
    generate(model, batch)  # must leave nothing behind
    tokens, mask = [], inputs["attention_mask"]
    with torch.no_grad():
        output = model(**inputs, use_cache=True)
        for _ in range(NUM_TOKENS):
            tokens.append(output.logits[:, -1].argmax(-1, keepdim=True))
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            output = model(
                input_ids=tokens[-1],
                attention_mask=mask if has_mask else None,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
    assert torch.cat(tokens, dim=1).equal(expected)


# What a conversation may leave out when it goes on: the cache knows where its images are.
LEFT_OUT = {
    "nothing": lambda whole, scene: {**whole, "image_grid_thw": scene["image_grid_thw"]},
    "the grid": lambda whole, scene: whole,
    "the grid and the token types": lambda whole, scene: without(whole, "mm_token_type_ids"),
    "the token types of new text": lambda whole, scene: {**whole, **only(scene, "mm_token_type_ids")},
    "the old text": lambda whole, scene: {
        "input_ids": whole["input_ids"][:, scene["input_ids"].shape[1] + NUM_TOKENS - 1 :],
        **only(whole, "attention_mask"),
    },
}


@pytest.mark.parametrize("left_out", LEFT_OUT)
def test_a_conversation_goes_on_without_what_its_cache_knows(left_out, model, scene):
    cache = DynamicCache(config=model.config.get_text_config())
    tokens = generate(model, scene, past_key_values=cache)
    generate(model, batch_of(model, CONVERSATIONS[3]))  # whose images have other places
    whole = longer(scene, tokens, " And then?")
    new = LEFT_OUT[left_out](whole, scene)
    assert generate(model, new, past_key_values=cache).equal(append_greedily(model, {**scene, **whole}))


def test_a_cache_that_is_used_again_forgets_its_images(model, scene):
    cache = StaticCache(model.config.get_text_config(), max_cache_len=128)
    generate(model, scene, past_key_values=cache)
    cache.reset()
    text = batch_of(model, CONVERSATIONS[1])
    tokens = generate(model, text, past_key_values=cache)
    whole = longer(text, tokens, " And?")
    assert generate(model, whole, past_key_values=cache).equal(append_greedily(model, whole))


def test_images_again_after_their_cache_are_refused(model, scene):
    cache = DynamicCache(config=model.config.get_text_config())
    tokens = generate(model, scene, past_key_values=cache)
    with refused("`past_key_values`", "`pixel_values`", " 85 "):
        generate(model, {**scene, **longer(scene, tokens, " And?")}, past_key_values=cache)


def test_images_in_the_cache_of_another_model_need_token_types(model, scene):
    cache = DynamicCache(config=model.config.get_text_config())
    tokens = generate(model, scene, past_key_values=cache)
    del cache.rope_deltas
    with refused("`mm_token_type_ids`"):
        generate(model, without(longer(scene, tokens, " And?"), "mm_token_type_ids"), past_key_values=cache)


# Text as embeddings.


def as_embeddings(model, inputs) -> dict[str, torch.Tensor]:
    """The inputs, with embeddings instead of ids and without token types."""
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()
    return {**without(inputs, "input_ids", "mm_token_type_ids"), "inputs_embeds": embeddings}


@pytest.mark.parametrize("mode", ["greedy", "no_cache", "static_cache", "beams"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_embeddings_with_images_give_the_tokens_of_ids(variant, mode):
    model = make_model(**VARIANTS[variant])
    inputs, kwargs = batch_of(model), {"num_beams": 2} if mode == "beams" else MODES[mode]
    tokens = model.generate(**as_embeddings(model, inputs), **kwargs, max_new_tokens=NUM_TOKENS, do_sample=False)
    assert tokens.equal(generate(model, inputs, **kwargs))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_embeddings_with_images_give_the_logits_of_ids(variant):
    model = make_model(**VARIANTS[variant])
    inputs = batch_of(model)
    torch.testing.assert_close(model(**as_embeddings(model, inputs)).logits, model(**inputs).logits)


def test_embeddings_with_encoded_images_give_the_logits_of_ids(model, batch):
    features = model.get_image_features(**without(batch, *TEXT))
    inputs = only(as_embeddings(model, batch), "inputs_embeds", "attention_mask", "image_grid_thw")
    with torch.no_grad():
        given, expected = model(**inputs, mm_encoder_outputs={"image": features}).logits, model(**batch).logits
    torch.testing.assert_close(given, expected)


def test_a_soft_prompt_of_peft_trains_before_images(scene):
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    model = peft.get_peft_model(make_model(), config)
    output = model(**scene, labels=scene["input_ids"])
    output.loss.backward()
    assert output.logits.shape[1] == scene["input_ids"].shape[1] + 4
    trained = [name for name, weight in model.named_parameters() if weight.grad is not None]
    assert trained == ["prompt_encoder.default.embedding.weight"]


# Dictionaries of outputs.

DICTIONARIES = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 2},
    "assisted": {"assistant_model": None},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
}


@pytest.mark.parametrize("mode", DICTIONARIES)
def test_attentions_and_hidden_states_of_each_step_are_returned(mode, eager, scene):
    kwargs = {"assistant_model": eager} if mode == "assisted" else DICTIONARIES[mode]
    requested = {"output_attentions": True, "output_hidden_states": True, "output_scores": True}
    output = eager.generate(**scene, **kwargs, **requested, return_dict_in_generate=True, max_new_tokens=4)
    text, rows = eager.config.text_config, kwargs.get("num_beams", 1)
    num_tokens = 0
    for step, (attentions, states) in enumerate(zip(output.attentions, output.hidden_states, strict=True)):
        assert (len(attentions), len(states)) == (text.num_hidden_layers, text.num_hidden_layers + 1)
        num_new = states[0].shape[1]
        num_tokens += num_new
        assert attentions[0].shape == (rows, text.num_attention_heads, num_new, num_tokens)
        assert states[0].shape == (rows, num_new, text.hidden_size)
        assert num_new == (scene["input_ids"].shape[1] if step == 0 else 1)
    assert num_tokens == output.sequences.shape[1] - 1


@pytest.fixture(scope="module")
def eager():
    model = make_model()
    model.set_attn_implementation("eager")
    return model


def test_new_images_after_a_cached_text_are_refused(model, scene):
    cache = DynamicCache(config=model.config.get_text_config())
    text = batch_of(model, CONVERSATIONS[1])
    generate(model, text, past_key_values=cache)
    whole = {name: torch.cat([text[name], scene[name]], dim=1) for name in TEXT}
    with refused("`input_ids`", "placeholders"):
        generate(model, {**whole, "image_grid_thw": scene["image_grid_thw"]}, past_key_values=cache)


# Streams and pipelines.


def test_a_streamer_yields_the_answer(model, scene):
    tokenizer = tiny_processor().tokenizer
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    thread = threading.Thread(target=generate, args=(model, scene), kwargs={"streamer": streamer})
    thread.start()
    answer = "".join(streamer)
    thread.join()
    assert answer == tokenizer.decode(generate(model, scene)[0])


@pytest.fixture(scope="module")
def pipe(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "spa3-vlm-4b"
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return pipeline("image-text-to-text", model=str(folder), device="cpu")


@pytest.mark.skipif(not is_torchvision_available(), reason="the library's pipeline needs torchvision")
def test_a_pipeline_for_any_modality_answers(pipe, model, scene):
    whole = pipeline("any-to-any", model=pipe.model, processor=pipe.processor, device="cpu")
    expected = tiny_processor().batch_decode(generate(model, scene), skip_special_tokens=True)
    assert generated_text(whole(text=CONVERSATIONS[0], **OPTIONS)) == expected


def test_the_class_for_any_modality_loads(pipe):
    loaded = AutoModelForMultimodalLM.from_pretrained(pipe.model.name_or_path)
    assert type(loaded) is Spa3VLMForConditionalGeneration


def generated_text(answer) -> list[str]:
    return [part["generated_text"] for part in answer]


OPTIONS = {"return_full_text": False, "generate_kwargs": {"do_sample": False, "max_new_tokens": NUM_TOKENS}}


@pytest.mark.parametrize("has_text", [False, True], ids=["a conversation", "images with a text"])
def test_a_pipeline_answers(has_text, pipe, model, scene):
    given = {"text": CONVERSATIONS[0]}
    if has_text:
        text = tiny_processor().apply_chat_template(CONVERSATIONS[0], add_generation_prompt=True)
        given = {"text": text, "images": [photo(0, 48, 64), photo(1, 48, 64)]}
    expected = tiny_processor().batch_decode(generate(model, scene), skip_special_tokens=True)
    assert generated_text(pipe(**given, **OPTIONS)) == expected


@pytest.mark.parametrize(
    "conversations, batch_size",
    [(CONVERSATIONS, 1), ([CONVERSATIONS[index] for index in (0, 2, 3)], 3)],
    ids=["one_by_one", "scenes_of_different_sizes_in_a_batch"],
)
def test_a_pipeline_answers_several_conversations(conversations, batch_size, pipe, model):
    answers = pipe(text=conversations, batch_size=batch_size, **OPTIONS)
    tokens = [generate(model, batch_of(model, row)) for row in conversations]
    decode = tiny_processor().batch_decode
    assert list(map(generated_text, answers)) == [decode(row, skip_special_tokens=True) for row in tokens]
