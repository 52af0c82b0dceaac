"""Generation with Spa3-VLM, in all its ways: what it gives, and how often it looks at the images."""

import threading

import pytest
import torch
from tiny_spa3_vlm import (
    CONVERSATIONS,
    GEOMETRY,
    VARIANTS,
    batch_of,
    photo,
    tiny_model,
    tiny_processor,
    without,
)
from transformers import DynamicCache, StaticCache, TextIteratorStreamer, TextStreamer, pipeline

from spa3r import Spa3VLMForConditionalGeneration

WAYS = {
    "greedy": {},
    "no_cache": {"use_cache": False},
    "static_cache": {"cache_implementation": "static", "disable_compile": True},
    "chunked_prefill": {"prefill_chunk_size": 7},
    "lookup": {"prompt_lookup_num_tokens": 2},
}
NUM_TOKENS = 8


def make_model(**changes) -> Spa3VLMForConditionalGeneration:
    """A tiny model that does not stop before `NUM_TOKENS`, so that rows are of one length."""
    model = tiny_model(**changes)
    model.generation_config.eos_token_id = None
    return model


def generate(model, inputs, **kwargs) -> torch.Tensor:
    """The new tokens, greedily unless told otherwise."""
    kwargs = {"max_new_tokens": NUM_TOKENS, "do_sample": False} | kwargs
    return model.generate(**inputs, **kwargs)[:, inputs["input_ids"].shape[1] :]


@torch.no_grad()
def append_greedily(model, inputs, number=NUM_TOKENS) -> torch.Tensor:
    """New tokens without the library's loop and without a cache: one whole forward pass for each."""
    inputs = dict(inputs)
    for _ in range(number):
        token = model(**inputs, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
        for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, 1), value=value)
    return inputs["input_ids"][:, -number:]


@pytest.fixture
def calls(model, monkeypatch):
    """How many images, and scenes, the encoders have seen."""
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


@pytest.fixture(scope="module")
def batch(model):
    return batch_of(model)


@pytest.fixture(scope="module")
def scene(model):
    return batch_of(model, CONVERSATIONS[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_are_those_of_whole_forward_passes(variant):
    model = make_model(**VARIANTS[variant])
    inputs = batch_of(model)
    assert generate(model, inputs).tolist() == append_greedily(model, inputs).tolist()


def test_tokens_depend_on_the_geometry(model, scene):
    other = {**scene, "pixel_values_geometry": 1 - scene["pixel_values_geometry"]}
    assert generate(model, scene).tolist() != generate(model, other).tolist()


@pytest.mark.parametrize("way", ["greedy", "no_cache", "static_cache", "chunked_prefill"])
def test_each_way_gives_the_greedy_tokens(way, model, batch):
    assert generate(model, batch, **WAYS[way]).tolist() == append_greedily(model, batch).tolist()


def test_prompt_lookup_gives_the_greedy_tokens(model, scene):
    assert generate(model, scene, **WAYS["lookup"]).tolist() == append_greedily(model, scene).tolist()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("num_return_sequences", [1, 3])
def test_beams_of_a_batch_are_those_of_each_row(variant, num_return_sequences):
    model = make_model(**VARIANTS[variant])
    kwargs = {"num_beams": 3, "num_return_sequences": num_return_sequences}
    alone = [generate(model, batch_of(model, row), **kwargs).tolist() for row in CONVERSATIONS]
    assert generate(model, batch_of(model), **kwargs).tolist() == sum(alone, [])


def test_the_best_beam_is_at_least_as_likely_as_the_greedy_tokens(model, scene):
    def score(tokens):
        whole = torch.cat([scene["input_ids"], tokens], dim=1)
        inputs = {**scene, "input_ids": whole, "attention_mask": torch.ones_like(whole)}
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(scene["mm_token_type_ids"], (0, tokens.shape[1]))
        with torch.no_grad():
            predicted = model(**inputs).logits[:, -tokens.shape[1] - 1 : -1].log_softmax(-1)
        return predicted.gather(2, tokens[..., None]).sum()

    # With as many beams as this, the search is exhaustive.
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
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token[None, None]], dim=1)
        for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, 1), value=value)


def test_several_samples_of_a_batch_are_of_their_own_rows(model, batch):
    kwargs = {"do_sample": True, "num_return_sequences": 3, "top_k": 0, "max_new_tokens": 2}
    output = model.generate(**batch, **kwargs, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad():
        expected = model(**batch).logits[:, -1]
    torch.testing.assert_close(output.logits[0], expected.repeat_interleave(3, dim=0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "kwargs",
    [*WAYS.values(), {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}],
    ids=[*WAYS, "beams", "samples"],
)
def test_images_are_seen_once_and_each_scene_by_itself(kwargs, model, calls):
    inputs = batch_of(model, CONVERSATIONS[0] if "prompt_lookup_num_tokens" in kwargs else CONVERSATIONS)
    generate(model, inputs, **kwargs)
    scenes = [2] if "prompt_lookup_num_tokens" in kwargs else [2, 1, 3]
    assert calls == {"visual": [sum(scenes)], "spatial_encoder": scenes}


def test_a_model_in_training_mode_fuses_once_too():
    model, fused = make_model().train(), []
    model.model.fusion.register_forward_hook(lambda *_: fused.append(1))
    generate(model, batch_of(model))
    assert fused == [1]


@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_latents_in_place_of_geometry_give_the_tokens_and_encode_nothing(kwargs, model, batch, calls):
    expected = generate(model, batch, **kwargs)
    latents = model.encode_scene(batch["pixel_values_geometry"], batch["geometry_sizes"], batch["num_views"])
    calls["spatial_encoder"].clear()
    assert torch.equal(generate(model, without(batch, *GEOMETRY), spatial_latents=latents, **kwargs), expected)
    assert not calls["spatial_encoder"]


def test_features_in_place_of_images_give_the_tokens_and_encode_nothing(model, batch, calls):
    expected = generate(model, batch)
    text = ("input_ids", "attention_mask", "mm_token_type_ids")
    features = model.get_image_features(**without(batch, *text))
    calls["visual"].clear()
    inputs = {name: batch[name] for name in (*text, "image_grid_thw")}
    assert torch.equal(generate(model, inputs, mm_encoder_outputs={"image": features}), expected)
    assert not calls["visual"]


# Going on from what a cache holds.


def longer(inputs, tokens, question):
    """A conversation with its answer and another question: of the whole text, but without the images."""
    added = torch.cat([tokens, torch.tensor([tiny_processor().tokenizer(question)["input_ids"]])], dim=1)
    names = {"input_ids": 0, "attention_mask": 1, "mm_token_type_ids": 0}
    padded = {n: torch.nn.functional.pad(inputs[n], (0, added.shape[1]), value=v) for n, v in names.items()}
    padded["input_ids"][:, -added.shape[1] :] = added
    return padded


@pytest.mark.parametrize("between", ["nothing", "text", "another_scene"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_conversation_goes_on_from_its_cache(variant, between):
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
def test_new_tokens_alone_go_on_from_the_cache_of_the_last_call(row, model, batch):
    inputs = batch_of(model, CONVERSATIONS[row])
    generate(model, batch)
    cache = DynamicCache(config=model.config.get_text_config())
    tokens = generate(model, inputs, past_key_values=cache)
    whole = longer(inputs, tokens, " And then?")
    new = {
        "input_ids": whole["input_ids"][:, cache.get_seq_length() :],
        "attention_mask": whole["attention_mask"],
    }
    assert generate(model, new, past_key_values=cache).equal(append_greedily(model, {**inputs, **whole}))


@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
def test_a_text_with_a_cache_of_its_own_knows_nothing_of_images_before(cache_class, model, batch):
    text = batch_of(model, CONVERSATIONS[1])
    generate(model, batch)
    config = model.config.get_text_config()
    cache = DynamicCache(config=config) if cache_class is DynamicCache else StaticCache(config, max_cache_len=128)
    assert generate(model, text, past_key_values=cache).equal(append_greedily(model, text))


def test_a_text_can_be_given_as_embeddings(model, batch):
    text = batch_of(model, CONVERSATIONS[1])
    generate(model, batch)
    inputs = {"inputs_embeds": model.get_input_embeddings()(text["input_ids"])}
    tokens = model.generate(
        **inputs, attention_mask=text["attention_mask"], max_new_tokens=NUM_TOKENS, do_sample=False
    )
    assert tokens.equal(append_greedily(model, text))


@pytest.mark.parametrize(
    "conversations, has_mask",
    [
        (CONVERSATIONS[0], True),
        (CONVERSATIONS[0], False),
        (CONVERSATIONS[1], True),
        (CONVERSATIONS[1], False),
        (CONVERSATIONS, True),
    ],
    ids=["scene", "scene_without_mask", "text", "text_without_mask", "batch"],
)
def test_a_loop_by_hand_with_a_cache_gives_the_greedy_tokens(conversations, has_mask, model, batch):
    inputs = batch_of(model, conversations)
    expected = append_greedily(model, inputs)
    generate(model, batch)  # whatever this leaves behind
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


def test_images_are_not_added_to_a_cache_that_is_filled(model, scene):
    cache = DynamicCache(config=model.config.get_text_config())
    tokens = generate(model, scene, past_key_values=cache)
    with pytest.raises(ValueError, match="Images cannot be added to `past_key_values` that hold 85 tokens"):
        generate(model, {**scene, **longer(scene, tokens, " And?")}, past_key_values=cache)


def test_images_in_a_cache_need_their_positions_too(model, scene):
    cache = DynamicCache(config=model.config.get_text_config())
    tokens = generate(model, scene, past_key_values=cache)
    whole = without(longer(scene, tokens, " And?"), "mm_token_type_ids")
    with pytest.raises(ValueError, match="Images need `mm_token_type_ids`"):
        generate(model, whole, past_key_values=cache)


def test_new_images_behind_a_cache_of_text_are_refused(model, scene):
    cache = DynamicCache(config=model.config.get_text_config())
    text = batch_of(model, CONVERSATIONS[1])
    generate(model, text, past_key_values=cache)
    whole = {n: torch.cat([text[n], scene[n]], dim=1) for n in ("input_ids", "attention_mask", "mm_token_type_ids")}
    with pytest.raises(ValueError, match="image placeholders, but there are no images"):
        generate(model, {**whole, "image_grid_thw": scene["image_grid_thw"]}, past_key_values=cache)


# Streams and pipelines.


def test_a_streamer_prints_the_answer(model, scene, capsys):
    tokenizer = tiny_processor().tokenizer
    tokens = generate(model, scene, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.strip("\n") == tokenizer.decode(tokens[0]).strip("\n")


def test_a_streamer_gives_the_answer_piece_by_piece(model, scene):
    tokenizer = tiny_processor().tokenizer
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    thread = threading.Thread(target=generate, args=(model, scene), kwargs={"streamer": streamer})
    thread.start()
    answer = "".join(streamer)
    thread.join()
    assert answer == tokenizer.decode(generate(model, scene)[0])


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "spa3-vlm-4b"
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pipe(checkpoint):
    return pipeline("image-text-to-text", model=checkpoint, device="cpu")


OPTIONS = {"return_full_text": False, "generate_kwargs": {"do_sample": False, "max_new_tokens": NUM_TOKENS}}


def decoded(model, tokens):
    return [tiny_processor().decode(row, skip_special_tokens=True) for row in tokens]


def test_a_pipeline_answers_a_conversation(pipe, model, scene):
    answer = pipe(text=CONVERSATIONS[0], **OPTIONS)
    assert [part["generated_text"] for part in answer] == decoded(model, generate(model, scene))


def test_a_pipeline_answers_images_with_a_text(pipe, model, scene):
    text = tiny_processor().apply_chat_template(CONVERSATIONS[0], add_generation_prompt=True, tokenize=False)
    images = [photo(0, 48, 64), photo(1, 48, 64)]
    answer = pipe(images=images, text=text, **OPTIONS)
    assert [part["generated_text"] for part in answer] == decoded(model, generate(model, scene))


@pytest.mark.parametrize(
    "conversations, batch_size",
    [(CONVERSATIONS, 1), ([CONVERSATIONS[index] for index in (0, 2, 3)], 3)],
    ids=["one_by_one", "scenes_of_different_sizes_in_a_batch"],
)
def test_a_pipeline_answers_several_conversations(conversations, batch_size, pipe, model):
    answers = pipe(text=conversations, batch_size=batch_size, **OPTIONS)
    expected = [decoded(model, generate(model, batch_of(model, row))) for row in conversations]
    assert [[part["generated_text"] for part in answer] for answer in answers] == expected
