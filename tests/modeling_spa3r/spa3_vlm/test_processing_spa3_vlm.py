"""The processor: text, images, videos, conversations, saving, and refusals."""

import base64
import copy
import inspect
from io import BytesIO

import numpy as np
import pytest
import torch
from jinja2 import TemplateError
from refusals import refused
from tiny_spa3_vlm import TEXT as TEXT_NAMES
from tiny_spa3_vlm import assert_same_tensors, conversation, only, photo, prepare, tiny_processor, user, views_of
from tiny_videos import numbers_of, write_video
from tokenizers import Tokenizer, models
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerFast

from spa3r import Spa3RImageProcessor, Spa3VLMImageProcessor, Spa3VLMProcessor
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer

START, PAD, VIDEO, END = "<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"
IMAGE = START + PAD + END
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
IMAGE_NAMES = Spa3VLMImageProcessor.model_input_names
# Features of a photo of 64 x 48 pixels (the vision tower gets 56 x 28 of it), and of one of 48 x 64 pixels.
WIDE, HIGH = 2, 4


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "room.mp4")


def text_of(processor, inputs: BatchFeature, mask: str = "attention_mask") -> list[str]:
    """Decoded text of each row: without padding, or what another mask marks."""
    rows = zip(inputs["input_ids"], inputs[mask], strict=True)
    return [processor.tokenizer.decode(ids[mask == 1]) for ids, mask in rows]


def part_of(video, key: str = "path") -> dict:
    return {"type": "video", key: str(video)}


def shades(inputs: BatchFeature) -> list[int]:
    """Index in the video of each image."""
    return numbers_of(np.uint8(255 * view.permute(1, 2, 0).numpy()) for view in views_of(inputs))


# Images and text.


def test_text_and_images_give_the_model_inputs(processor):
    inputs = processor(images=photo(0), text=IMAGE + "How many?", return_tensors="pt")
    assert list(inputs) == [*TEXT_NAMES, *IMAGE_NAMES]
    assert set(inputs) == set(processor.model_input_names)


def test_a_placeholder_is_repeated_for_each_feature_of_its_image(processor):
    images = [photo(0, 64, 48), photo(1, 48, 64)]
    inputs = processor(images=images, text=f"{IMAGE}and{IMAGE}?", return_tensors="pt")
    assert text_of(processor, inputs) == [f"{START}{PAD * WIDE}{END}and{START}{PAD * HIGH}{END}?"]
    assert torch.equal(inputs["mm_token_type_ids"] == 1, inputs["input_ids"] == processor.image_token_id)


def test_images_equal_those_of_the_image_processor(processor):
    scenes = [[photo(0), photo(1)], [photo(2, 48, 64)]]
    inputs = processor(images=scenes, text=[IMAGE * 2, IMAGE], padding=True, return_tensors="pt")
    assert_same_tensors(only(inputs, *IMAGE_NAMES), processor.image_processor(scenes, return_tensors="pt"))


@pytest.mark.parametrize("images", [None, [], [[]]], ids=["none", "no image", "a row of no image"])
def test_text_without_images_gives_text_inputs_only(images, processor):
    assert list(processor(images=images, text="Hello", return_tensors="pt")) == [*TEXT_NAMES]


def test_images_alone_give_one_scene(processor):
    inputs = processor(images=[photo(0), photo(1)], return_tensors="pt")
    assert list(inputs) == IMAGE_NAMES and inputs["num_views"].tolist() == [2]


def test_a_flat_list_of_images_is_split_by_the_placeholders_of_each_row(processor):
    photos = [photo(index) for index in range(3)]
    text = [IMAGE * 2, "none here", IMAGE]
    flat = processor(images=photos, text=text, padding=True, return_tensors="pt")
    nested = processor(images=[photos[:2], [], photos[2:]], text=text, padding=True, return_tensors="pt")
    assert flat["num_views"].tolist() == [2, 0, 1]
    assert_same_tensors(flat, nested)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_equals_its_rows(side, processor):
    conversations = [
        conversation([photo(0), photo(1)], "How many chairs are there?"),
        conversation([], "Hello."),
        conversation([photo(2, 48, 64)], "And now?"),
    ]
    batch = prepare(processor, conversations, padding_side=side)
    rows = [prepare(processor, [each], padding=False) for each in conversations]
    for index, row in enumerate(rows):
        length = row["input_ids"].shape[1]
        own = slice(-length, None) if side == "left" else slice(0, length)
        assert batch["attention_mask"][index].sum() == length
        for name in TEXT_NAMES:
            assert torch.equal(batch[name][index, own], row[name][0]), name
    for name in IMAGE_NAMES[:-1]:
        assert torch.equal(batch[name], torch.cat([rows[0][name], rows[2][name]])), name
    assert batch["num_views"].tolist() == [2, 0, 1]


def test_the_call_of_trls_collator_works(processor):
    # It passes rendered conversations and pads on the right.
    inputs = processor(
        images=[[photo(0)], []],
        text=[f"<|im_start|>user\n{IMAGE}What?<|im_end|>\n", "<|im_start|>user\nHello.<|im_end|>\n"],
        padding=True,
        padding_side="right",
        pad_to_multiple_of=8,
        truncation=False,
        max_length=None,
        return_tensors="pt",
        add_special_tokens=False,
    )
    assert inputs["input_ids"].shape[1] % 8 == 0 and inputs["num_views"].tolist() == [1, 0]
    assert inputs["attention_mask"][:, 0].tolist() == [1, 1] and inputs["attention_mask"][1, -1] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "max_length", "max_length": 20, "image_width": 84},
        {"text_kwargs": {"padding": "max_length", "max_length": 20}, "images_kwargs": {"image_width": 84}},
    ],
    ids=["flat", "nested"],
)
def test_options_reach_tokenizer_and_image_processor(options, processor):
    inputs = processor(images=photo(0), text=IMAGE, return_tensors="pt", **options)
    assert inputs["input_ids"].shape == (1, 20) and inputs["geometry_sizes"].tolist() == [[56, 84]]


def test_text_after_the_images_can_be_truncated(processor):
    options = {"max_length": WIDE + 4, "truncation": True, "return_tensors": "pt"}
    inputs = processor(images=photo(0), text=IMAGE + "abcdef", **options)
    assert text_of(processor, inputs) == [f"{START}{PAD * WIDE}{END}ab"]


# Latents that are appended to the image tokens.


@pytest.mark.parametrize("side", ["left", "right"])
def test_placeholders_of_latents_follow_the_last_image_with_the_token_type_of_text(side):
    processor = tiny_processor(num_appended_tokens=3)
    text = [f"{IMAGE}and{IMAGE}?", "none", f"{IMAGE}!"]
    images = [photo(index) for index in range(3)]
    inputs = processor(images=images, text=text, padding=True, padding_side=side, return_tensors="pt")
    image, latents = START + PAD * WIDE + END, START + PAD * 3 + END
    assert text_of(processor, inputs) == [f"{image}and{image}{latents}?", "none", f"{image}{latents}!"]
    rows = zip(inputs["mm_token_type_ids"], inputs["input_ids"], inputs["num_views"], strict=True)
    for types, ids, num_views in rows:
        placeholders = (ids == processor.image_token_id).nonzero().flatten()
        assert torch.equal(types.nonzero().flatten(), placeholders[: num_views * WIDE])


# Conversations.


USER, ASSISTANT = "<|im_start|>user\n", "<|im_start|>assistant\n"
ENDED = "<|im_end|>\n"
QUESTION = {"role": "user", "content": "How many?"}
# Messages, options, and the text in Qwen's format.
RENDERED = {
    "turns": (
        [
            *user({"type": "image"}, "How many?"),
            {"role": "assistant", "content": "Two."},
            {"role": "user", "content": "Sure?"},
        ],
        {"add_generation_prompt": True},
        f"{SYSTEM}{USER}{IMAGE}How many?{ENDED}{ASSISTANT}Two.{ENDED}{USER}Sure?{ENDED}{ASSISTANT}",
    ),
    "own system message": (
        [{"role": "system", "content": "Be brief."}, QUESTION],
        {},
        f"<|im_start|>system\nBe brief.{ENDED}{USER}How many?{ENDED}",
    ),
    **{
        f"start of an answer as {name}": (
            [QUESTION, {"role": "assistant", "content": content}],
            {"continue_final_message": True},
            f"{SYSTEM}{USER}How many?{ENDED}{ASSISTANT}There are",
        )
        for name, content in {"string": "There are", "parts": [{"type": "text", "text": "There are"}]}.items()
    },
}


@pytest.mark.parametrize("kind", RENDERED)
def test_a_conversation_is_rendered_in_qwens_format(kind, processor):
    messages, options, expected = RENDERED[kind]
    assert processor.apply_chat_template(messages, **options) == expected


@pytest.mark.parametrize("key", ["image", "path", "url", "base64", "image_url"])
def test_every_key_for_an_image_works(key, processor, tmp_path):
    photo(0).save(tmp_path / "photo.png")
    file = BytesIO()
    photo(0).save(file, "png")
    in_base64 = base64.b64encode(file.getvalue()).decode()
    part = {
        "image": {"type": "image", "image": photo(0)},
        "path": {"type": "image", "path": str(tmp_path / "photo.png")},
        "url": {"type": "image", "url": f"data:image/png;base64,{in_base64}"},
        "base64": {"type": "image", "base64": in_base64},
        "image_url": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{in_base64}"}},
    }[key]
    expected = prepare(processor, conversation([photo(0)], "What?"))
    assert_same_tensors(prepare(processor, user(part, "What?")), expected)


def test_a_conversation_equals_its_rendered_text_and_images(processor):
    messages = conversation([photo(0), photo(1)], "How many?")
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    expected = processor(images=[photo(0), photo(1)], text=text, return_tensors="pt")
    assert_same_tensors(prepare(processor, messages), expected)


def test_the_given_conversation_is_not_changed(processor, video):
    messages = user(part_of(video), "Where?")
    before = copy.deepcopy(messages)
    prepare(processor, messages, num_frames=2)
    assert messages == before


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("num_appended_tokens", [0, 3])
def test_the_assistant_mask_marks_answers_and_their_end(side, num_appended_tokens, video):
    processor = tiny_processor(num_appended_tokens=num_appended_tokens)
    image = {"type": "image", "image": photo(0)}
    conversations = [
        [
            *user(image, part_of(video), "How many?"),
            {"role": "assistant", "content": "Two."},
            *user("And", image, "here?"),
            {"role": "assistant", "content": [{"type": "text", "text": "Three."}]},
        ],
        [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day to you."}],
    ]
    inputs = processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": side, "num_frames": 3},
    )
    assert inputs["num_views"].tolist() == [5, 0]
    answers = ["Two.<|im_end|>\nThree.<|im_end|>\n", "Good day to you.<|im_end|>\n"]
    assert text_of(processor, inputs, "assistant_masks") == answers


def test_control_tokens_in_a_question_can_be_sanitized(processor):
    question = f"What does {PAD} or <|im_end|> mean?"
    inputs = processor.apply_chat_template(
        conversation([photo(0)], question), tokenize=True, return_dict=True, return_tensors="pt",
        sanitize_control_tokens=True,
    )  # fmt: skip
    assert question in text_of(processor, inputs)[0]
    assert (inputs["input_ids"] == processor.image_token_id).sum() == inputs["mm_token_type_ids"].sum() == WIDE


# Videos.


@pytest.mark.parametrize("key", ["video", "path", "url"])
def test_a_video_in_a_conversation_becomes_evenly_spread_images(key, processor, video):
    inputs = prepare(processor, user(part_of(video, key), "Where?"), num_frames=4)
    assert shades(inputs) == [0, 6, 12, 19] and inputs["num_views"].tolist() == [4]
    assert (START + PAD * WIDE + END) * 4 + "Where?" in text_of(processor, inputs)[0]


def test_images_and_videos_keep_their_order_in_a_conversation(processor, video):
    white = {"type": "image", "image": photo(0).point(lambda value: 255)}
    messages = user(white, part_of(video), "and", white)
    assert shades(prepare(processor, messages, num_frames=2)) == [20, 0, 19, 20]


def test_the_default_number_of_frames_is_the_processors(video):
    processor = tiny_processor(num_frames=3)
    assert shades(processor(videos=video, text=START + VIDEO + END, return_tensors="pt")) == [0, 9, 19]


def test_rendering_without_tokenizing_keeps_the_video_placeholder(processor, video):
    messages = user(part_of(video), "Go.")
    text = processor.apply_chat_template(messages)
    assert text == f"{SYSTEM}<|im_start|>user\n{START}{VIDEO}{END}Go.<|im_end|>\n"
    given = processor(videos=[video], text=text, num_frames=3, return_tensors="pt")
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "num_frames": 3}
    assert_same_tensors(given, processor.apply_chat_template(messages, **options))


# Options of the library for the frames of a video of 2 s and 20 frames, and the frames taken.
SAMPLED = {
    "a number": ({"num_frames": 4}, [0, 6, 12, 19]),
    "a number among options of videos": ({"videos_kwargs": {"num_frames": 4}}, [0, 6, 12, 19]),
    "a number among options of all": ({"common_kwargs": {"num_frames": 4}}, [0, 6, 12, 19]),
    "frames per second": ({"fps": 2}, [0, 6, 12, 19]),
    "few frames per second": ({"videos_kwargs": {"fps": 0.1}}, [0]),
    "no frames per second": ({"fps": None}, [0, 9, 19]),
    "sampling": ({"do_sample_frames": True}, [0, 9, 19]),
    "no sampling": ({"do_sample_frames": False}, list(range(20))),
}


@pytest.mark.parametrize("by", ["call", "conversation", "conversation directly"])
@pytest.mark.parametrize(("options", "expected"), SAMPLED.values(), ids=SAMPLED)
def test_frames_of_a_video_are_chosen_by_the_options_of_the_library(by, options, expected, video):
    processor = tiny_processor(num_frames=3)
    if by == "call":
        inputs = processor(videos=video, text=START + VIDEO + END, return_tensors="pt", **options)
    elif by == "conversation":
        inputs = prepare(processor, user(part_of(video)), **options)
    else:
        tokenized = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        options = options.get("common_kwargs", options)
        inputs = processor.apply_chat_template(user(part_of(video)), **tokenized, **options)
    assert shades(inputs) == expected


@pytest.mark.parametrize("options", [{"do_sample_frames": True}, {"num_frames": 2}], ids=str)
def test_frames_given_as_images_are_chosen_on_request(options):
    given = tiny_processor(num_frames=2)(videos=FRAMES, text=VIDEO, return_tensors="pt", **options)
    assert given["num_views"].tolist() == [2]


@pytest.mark.parametrize("options", [{"common_kwargs": {"return_tensors": "pt"}}, {"return_tensors": "pt"}], ids=str)
def test_options_of_all_make_tensors(options, processor):
    assert isinstance(processor(images=photo(0), text=IMAGE, **options)["pixel_values_geometry"], torch.Tensor)


@pytest.mark.parametrize("num_appended_tokens", [0, 8])
@pytest.mark.parametrize("side", [(64, 48), (48, 64), (90, 40)], ids=str)
def test_placeholders_are_counted_before_images_are_read(side, num_appended_tokens):
    processor = tiny_processor(num_appended_tokens=num_appended_tokens)
    inputs = processor(images=[photo(0, *side)] * 2, text=IMAGE * 2, return_tensors="pt")
    data = processor._get_num_multimodal_tokens(image_sizes=[side[::-1]] * 2, video_sizes=[(2, *side[::-1])])
    number = inputs["input_ids"].eq(processor.image_token_id).sum().item()
    assert sum(data.num_image_tokens) == number and data.num_video_tokens == [number]
    assert sum(data.num_image_patches) == len(inputs["pixel_values"])


def test_no_option_is_given_to_the_constructor_and_to_a_call():
    constructor, call = (
        {name for name, parameter in inspect.signature(method).parameters.items() if parameter.kind.name[:3] != "VAR"}
        for method in (Spa3VLMProcessor.__init__, Spa3VLMProcessor.__call__)
    )
    assert constructor & call == {"self"}


FRAMES = [photo(index) for index in range(4)]
STACKED = np.stack([np.array(frame) for frame in FRAMES])
VIDEOS = {
    "a list of frames": FRAMES,
    "a list of one list": [FRAMES],
    "a tuple of arrays": tuple(STACKED),
    "an array": STACKED,
    "a list of one array": [STACKED],
    "a tensor": torch.from_numpy(STACKED).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("kind", VIDEOS)
def test_a_video_given_as_frames_equals_their_images(kind, processor):
    expected = processor(images=FRAMES, text=IMAGE * 4 + "?", return_tensors="pt")
    assert_same_tensors(processor(videos=VIDEOS[kind], text=f"{START}{VIDEO}{END}?", return_tensors="pt"), expected)


def test_frames_of_a_video_can_be_paths(processor, tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(2)]
    for path, frame in zip(paths, FRAMES, strict=False):
        frame.save(path)
    given = prepare(processor, user({"type": "video", "video": paths}, "Where?"))
    assert_same_tensors(given, prepare(processor, conversation(FRAMES[:2], "Where?")))


def test_num_frames_selects_from_a_video_given_as_frames(processor):
    given = processor(videos=FRAMES, text=VIDEO, num_frames=2, return_tensors="pt")
    expected = processor.image_processor([FRAMES[0], FRAMES[3]], return_tensors="pt")
    assert_same_tensors(only(given, *IMAGE_NAMES), expected)


def test_images_and_videos_keep_their_order_in_a_batch(processor, video):
    white = photo(0).point(lambda value: 255)
    text = [f"{IMAGE}{START}{VIDEO}{END}", "none", f"{START}{VIDEO}{END}{IMAGE}{IMAGE}"]
    for images in ([white] * 3, [[white], [], [white] * 2]):
        videos = {"videos": [video, FRAMES[:1]], "num_frames": 2}
        inputs = processor(images=images, text=text, **videos, padding=True, return_tensors="pt")
        assert inputs["num_views"].tolist() == [3, 0, 3]
        assert shades(inputs)[:3] == [20, 0, 19] and shades(inputs)[4:] == [20, 20]


# Saving and loading.


@pytest.mark.parametrize("load", [Spa3VLMProcessor, AutoProcessor])
def test_all_options_are_saved_and_loaded(load, tmp_path):
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    processor = Spa3VLMProcessor(
        Spa3VLMImageProcessor(image_width=84), byte_tokenizer(), template, num_frames=5, num_appended_tokens=7
    )
    processor.save_pretrained(tmp_path)
    loaded = load.from_pretrained(tmp_path)
    assert type(loaded) is Spa3VLMProcessor and type(loaded.image_processor) is Spa3VLMImageProcessor
    assert (loaded.num_frames, loaded.num_appended_tokens, loaded.chat_template) == (5, 7, template)
    arguments = {"images": photo(0), "text": IMAGE + "What?", "return_tensors": "pt"}
    assert_same_tensors(loaded(**arguments), processor(**arguments))


def test_options_can_be_changed_while_loading(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path, num_frames=8).num_frames == 8


# Wrong input.


# Arguments, and what the message must name.
REFUSED = {
    "more images": ({"images": [photo(0)] * 2, "text": IMAGE}, ["Row 0 has 2 ", f"1 `{PAD}`"]),
    "fewer images": ({"images": photo(0), "text": IMAGE * 2}, ["Row 0 has 1 ", f"2 `{PAD}`"]),
    "no images": ({"text": ["none", IMAGE]}, ["Row 1 has 0 ", f"1 `{PAD}`"]),
    "adjacent images": ({"images": [photo(0)] * 2, "text": PAD * 2}, ["Row 0 ", f"`{PAD}`"]),
    "an empty list": ({"images": [], "text": IMAGE}, ["Row 0 has 0 ", f"1 `{PAD}`"]),
    "no placeholder": ({"images": photo(0), "text": "none"}, ["Row 0 has 1 ", f"0 `{PAD}`"]),
    "more images than texts have": (
        {"images": [photo(0)] * 3, "text": [IMAGE, IMAGE]},
        ["`images`", "3", f"2 `{PAD}`"],
    ),
    "images of another row": (
        {"images": [[photo(0)], [photo(1)]], "text": [IMAGE * 2, "none"]},
        ["Row 0 has 1 ", f"2 `{PAD}`"],
    ),
    "fewer rows": ({"images": [[photo(0)]], "text": [IMAGE] * 2}, ["`images` has 1 ", "`text` has 2"]),
    "mixture": ({"images": [[photo(0)], photo(0)], "text": [IMAGE] * 2}, ["`images`"]),
    "images of another row beside a video": (
        {"images": [[photo(0)], [photo(1)]], "text": [IMAGE * 2, VIDEO], "videos": FRAMES},
        ["Row 0 has 1 ", f"2 `{PAD}`"],
    ),
    "fewer videos": ({"videos": FRAMES, "text": VIDEO * 2}, ["`videos` holds 1", f"2 `{VIDEO}`"]),
    "more videos": ({"videos": [FRAMES, FRAMES], "text": VIDEO}, ["`videos` holds 2", f"1 `{VIDEO}`"]),
    "no videos": ({"videos": [], "text": VIDEO}, ["`videos` holds 0", f"1 `{VIDEO}`"]),
    "a video placeholder alone": ({"text": VIDEO}, [VIDEO]),
    "no frames": ({"videos": [[]], "text": VIDEO}, ["`videos`", "0 frames"]),
    "an image as video": ({"videos": photo(0), "text": VIDEO}, ["`videos`", "Image"]),
    "a number as video": ({"videos": 3, "text": VIDEO}, ["`videos`", "int"]),
    "num_frames of 0": ({"videos": FRAMES, "text": VIDEO, "num_frames": 0}, ["`num_frames`", "0"]),
    "missing video": ({"videos": "gone.mp4", "text": VIDEO}, ["`gone.mp4`"]),
    "missing image": ({"images": "gone.jpg", "text": IMAGE}, ["`gone.jpg`"]),
    "videos alone": ({"videos": FRAMES}, ["`videos`", "`text`", f"`{VIDEO}`"]),
    "sound": ({"text": "Hi.", "audio": np.zeros(9)}, ["`audio`"]),
    "nothing": ({}, ["input"]),
    "a number as text": ({"text": 5}, ["`text`", "5"]),
    "no texts": ({"text": []}, ["`text`", "[]"]),
    "words": ({"text": [["a", "b"]]}, ["`text`", "[['a', 'b']]"]),
    "truncated placeholders": ({"images": photo(0), "text": IMAGE, "max_length": 2, "truncation": True}, ["`image`"]),
    "unknown": ({"text": "Hi.", "paddin": True}, ["['paddin']", "`num_frames`"]),
    "frames per second of images": ({"text": VIDEO, "videos": FRAMES, "fps": 2}, ["`fps` is 2", "`num_frames`"]),
    "two numbers of frames": (
        {"text": VIDEO, "videos": FRAMES, "num_frames": 1, "fps": 2.0},
        ["`num_frames=1`", "`fps=2.0`"],
    ),
    "a number of all frames": (
        {"text": VIDEO, "videos": FRAMES, "num_frames": 2, "do_sample_frames": False},
        ["`num_frames=2`", "`do_sample_frames=False`"],
    ),
    "a number of frames twice": (
        {"text": VIDEO, "videos": FRAMES, "num_frames": 2, "videos_kwargs": {"num_frames": 2}},
        ["['num_frames']", "`videos_kwargs`"],
    ),
    "unknown for videos": (
        {"text": VIDEO, "videos": FRAMES, "videos_kwargs": {"size": 56}},
        ["['size']", "`videos_kwargs`", "`images_kwargs`"],
    ),
    "unknown for all": ({"text": "Hi.", "common_kwargs": {"paddin": True}}, ["['paddin']"]),
    "unknown for text": ({"text": "Hi.", "text_kwargs": {"paddin": True}}, ["['paddin']"]),
    "unknown for images": ({"images": photo(0), "text": IMAGE, "images_kwargs": {"width": 56}}, ["['width']"]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_wrong_call_is_refused(kind, processor):
    arguments, named = REFUSED[kind]
    with refused(*named):
        processor(**arguments)


# Parts of a message, options of `prepare`, and what the message must name.
REFUSED_CONVERSATIONS = {
    "a video without a source": ([{"type": "video", "file": "room.mp4"}], {}, ["['file', 'type']", "`path`"]),
    "an image without a source": ([{"type": "image", "file": "room.jpg"}], {}, ["Row 0 has 0 ", f"1 `{PAD}`"]),
    "an unknown option": ([], {"paddin": True}, ["['paddin']"]),
    **{
        f"a forged {name} beside {len(images)} images": ([*images, forged], {}, ["_pad|>"])
        for name, forged in {"image token": PAD, "image": IMAGE, "video token": VIDEO}.items()
        for images in ([], [{"type": "image", "image": photo(0)}])
    },
}


@pytest.mark.parametrize("kind", REFUSED_CONVERSATIONS)
def test_a_wrong_conversation_is_refused(kind, processor):
    content, options, named = REFUSED_CONVERSATIONS[kind]
    with refused(*named):
        prepare(processor, user(*content), **options)


def test_an_empty_conversation_is_refused(processor):
    with refused("`conversation`", "[]"):
        processor.apply_chat_template([])


@pytest.mark.parametrize("tokenize", [True, False])
def test_an_unknown_part_of_a_message_is_refused(tokenize, processor):
    with refused("`sound`", error=TemplateError):
        processor.apply_chat_template(user({"type": "sound"}, "What?"), tokenize=tokenize)


def test_an_end_of_image_token_in_a_question_changes_no_image(processor):
    inputs = prepare(processor, conversation([photo(0)], f"What is {END} here?"))
    assert inputs["mm_token_type_ids"].sum() == WIDE
    assert torch.equal(inputs["mm_token_type_ids"] == 1, inputs["input_ids"] == processor.image_token_id)


@pytest.mark.parametrize("unknown", [None, "?"])
def test_a_tokenizer_without_the_special_tokens_is_refused(unknown):
    backend = Tokenizer(models.BPE(vocab={"a": 0, "?": 1}, merges=[], unk_token=unknown))
    backend.add_special_tokens([START, END])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unknown)
    with refused("`tokenizer`", f"['{PAD}', '{VIDEO}']"):
        Spa3VLMProcessor(Spa3VLMImageProcessor(), tokenizer)


def test_the_image_processor_of_spa3r_is_refused():
    # Older checkpoints call that of Spa3-VLM by this name.
    with refused("`image_processor`", "`Spa3RImageProcessor`", "`image_processor_type`"):
        Spa3VLMProcessor(Spa3RImageProcessor(), byte_tokenizer())


@pytest.mark.parametrize("parts", [[], ["image_processor"], ["image_processor", "tokenizer", "num_frame"]], ids=str)
def test_a_processor_with_missing_or_unknown_parts_is_refused(parts):
    arguments = {"image_processor": Spa3VLMImageProcessor(), "tokenizer": byte_tokenizer(), "num_frame": 3}
    with pytest.raises(TypeError):
        Spa3VLMProcessor(**only(arguments, *parts))
