"""A scene session encodes a scene once and answers like a call of `generate` with photos and question."""

import copy

import pytest
import torch
from refusals import refused
from tiny_spa3_vlm import VARIANTS, conversation, photo, prepare, tiny_model, tiny_processor
from transformers import GenerationConfig

from spa3r import SceneSession

QUESTIONS = ["How many chairs are there?", "Is the sofa left of the door, seen from the window?", "Why?"]
GREEDY = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def views():
    return [photo(seed) for seed in range(3)]


def fresh(model, processor, views, question, **kwargs):
    """New tokens of a call of `generate` with photos and question."""
    inputs = prepare(processor, conversation(views, question))
    return model.generate(**inputs, **(GREEDY | kwargs))[:, inputs["input_ids"].shape[1] :]


@pytest.fixture(scope="module")
def session(model, processor, views):
    return SceneSession(model, processor, views)


def count_calls(module, calls):
    return module.register_forward_hook(lambda *_: calls.append(type(module).__name__))


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_answer_has_the_tokens_of_a_fresh_call(variant, views):
    model = tiny_model(**VARIANTS[variant])
    processor = tiny_processor(num_appended_tokens=model.config.num_appended_tokens)
    session = SceneSession(model, processor, views)
    for question in QUESTIONS:
        expected = fresh(model, processor, views, question)
        assert torch.equal(session.generate([question], **GREEDY), expected)


@pytest.mark.parametrize(
    "questions, options",
    [
        (QUESTIONS, {}),
        (QUESTIONS, {"num_beams": 3, "num_return_sequences": 2}),
        (QUESTIONS[:1], {"do_sample": True, "num_return_sequences": 3}),
    ],
    ids=["batch", "beams", "samples"],
)
def test_answers_have_the_tokens_of_fresh_calls(questions, options, model, processor, views, session):
    torch.manual_seed(0)
    expected = torch.cat([fresh(model, processor, views, question, **options) for question in questions])
    torch.manual_seed(0)
    assert torch.equal(session.generate(questions, **(GREEDY | options)), expected)


def test_a_repetition_penalty_does_not_count_the_padding_of_a_batch(model, processor, views):
    # The penalty applies to every earlier token, so padding must not add one.
    penalized = GREEDY | {"repetition_penalty": 50.0}
    favoured = processor.tokenizer.pad_token_id
    model = copy.deepcopy(model)
    model.lm_head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    torch.nn.init.zeros_(model.lm_head.weight)
    torch.nn.init.zeros_(model.lm_head.bias)
    with torch.no_grad():
        model.lm_head.bias[favoured], model.lm_head.bias[ord("a")] = 3.0, 1.0
    session = SceneSession(model, processor, views)
    first = [tokens[0].item() for tokens in session.generate(QUESTIONS, **penalized)]
    assert first == [favoured] * len(QUESTIONS)


def test_a_generation_config_falls_back_on_the_models_number_of_beams(model, processor, views, session, monkeypatch):
    monkeypatch.setattr(model.generation_config, "num_beams", 3)
    expected = fresh(model, processor, views, QUESTIONS[0])
    assert torch.equal(session.generate(QUESTIONS[:1], GenerationConfig(**GREEDY)), expected)


@pytest.mark.parametrize("option", [{"use_cache": False}, {"return_dict_in_generate": True}], ids=str)
def test_options_that_change_no_token_change_no_answer(option, session):
    expected = session.generate(QUESTIONS[:1], **GREEDY)
    assert torch.equal(session.generate(QUESTIONS[:1], **GREEDY, **option), expected)


def test_a_scene_can_be_a_single_image(model, processor, views, tmp_path):
    views[0].save(tmp_path / "door.png")
    expected = fresh(model, processor, views[:1], QUESTIONS[0])
    for images in (views[0], str(tmp_path / "door.png")):
        assert torch.equal(SceneSession(model, processor, images).generate(QUESTIONS[:1], **GREEDY), expected)


def test_the_scene_is_encoded_once_for_all_questions(model, processor, views):
    calls = []
    hooks = [count_calls(module, calls) for module in (model.model.spatial_encoder, model.model.vlm.visual)]
    session = SceneSession(model, processor, views)
    for question in QUESTIONS:
        session.generate([question], **GREEDY)
    for hook in hooks:
        hook.remove()
    assert sorted(calls) == ["Qwen2_5_VisionTransformerPretrainedModel", "Spa3RSceneEncoder"]


def test_no_token_of_the_prefix_is_computed_again(model, processor, views, session):
    lengths = []
    hook = model.model.vlm.language_model.register_forward_hook(
        lambda module, args, kwargs, output: lengths.append(output.last_hidden_state.shape[1]), with_kwargs=True
    )
    session.generate(QUESTIONS[:1], **GREEDY)
    hook.remove()
    whole = prepare(processor, conversation(views, QUESTIONS[0]))["input_ids"].shape[1]
    kept = session.prefix_inputs["input_ids"].shape[1]
    assert lengths == [whole - kept] + [1] * 7


def test_an_answer_does_not_depend_on_earlier_questions(session):
    first = session.generate(QUESTIONS[:1], **GREEDY)
    session.generate(QUESTIONS, max_new_tokens=20, do_sample=False)
    assert torch.equal(session.generate(QUESTIONS[:1], **GREEDY), first)


def test_sessions_of_two_scenes_are_independent(model, processor, views, session):
    others = [photo(seed, height=64) for seed in (7, 8)]
    expected = torch.cat([fresh(model, processor, others, question) for question in QUESTIONS])
    assert torch.equal(SceneSession(model, processor, others).generate(QUESTIONS, **GREEDY), expected)
    assert torch.equal(session.generate(QUESTIONS[:1], **GREEDY), fresh(model, processor, views, QUESTIONS[0]))


def test_a_session_from_given_latents_has_the_same_tokens_and_encodes_no_scene(model, processor, views, session):
    calls = []
    hook = count_calls(model.model.spatial_encoder, calls)
    again = SceneSession(model, processor, views, spatial_latents=session.spatial_latents.clone())
    hook.remove()
    assert torch.equal(again.generate(QUESTIONS, **GREEDY), session.generate(QUESTIONS, **GREEDY))
    assert not calls


def test_ask_returns_the_decoded_answer(model, processor, views, session):
    tokens = fresh(model, processor, views, QUESTIONS[0])[0]
    assert session.ask(QUESTIONS[0], **GREEDY) == processor.decode(tokens, skip_special_tokens=True).strip()
    assert session.ask(QUESTIONS[:1], **GREEDY) == [session.ask(QUESTIONS[0], **GREEDY)]


def test_a_session_does_not_change_the_model(model, processor, views):
    before = copy.deepcopy(model.state_dict())
    SceneSession(model, processor, views).generate(QUESTIONS, **GREEDY)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Wrong input.


@pytest.mark.parametrize(
    "scene, named",
    [
        ({}, ["`images`", "`video`", "neither"]),
        ({"images": ["door.png"], "video": "room.mp4"}, ["`images`", "`video`", "both"]),
        ({"images": []}, ["`images`", "[]"]),
        ({"images": ["nowhere.png"]}, ["`nowhere.png`"]),
        ({"video": "nowhere.mp4"}, ["`nowhere.mp4`"]),
    ],
    ids=["nothing", "images and a video", "no image", "missing image", "missing video"],
)
def test_a_session_without_a_readable_scene_is_refused(scene, named, model, processor):
    with refused(*named):
        SceneSession(model, processor, **scene)


@pytest.mark.parametrize(
    "questions, options, named",
    [
        ([], {}, ["`questions`", "[]"]),
        ("What is <|vision_start|><|image_pad|><|vision_end|>?", {}, ["`<|image_pad|>`"]),
        (QUESTIONS[0], {"prompt_lookup_num_tokens": 2}, ["`prompt_lookup_num_tokens`"]),
    ],
    ids=["no question", "an image in a question", "assisted generation"],
)
def test_what_a_session_cannot_answer_is_refused(questions, options, named, session):
    with refused(*named):
        session.ask(questions, **options)


def test_a_template_that_begins_with_the_question_is_refused(model, views):
    part = "{% if part.type == 'image' %}<|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    template = "{% for part in messages[0].content | reverse %}" + part + "{% endfor %}"
    with refused("`chat_template`"):
        SceneSession(model, tiny_processor(chat_template=template), views)
