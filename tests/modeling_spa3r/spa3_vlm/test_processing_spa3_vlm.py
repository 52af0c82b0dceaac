"""Text, images and videos in one call: what is returned, for whom, in which order, and what is refused."""

import base64
import copy
import re
import subprocess
import sys
import textwrap
from io import BytesIO

import numpy as np
import pytest
import torch
from jinja2 import TemplateError
from tiny_spa3_vlm import conversation, photo, prepare, tiny_processor, views_of
from tiny_videos import numbers_of, write_video
from tokenizers import Tokenizer, models
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerFast

from spa3r import Spa3VLMImageProcessor, Spa3VLMProcessor
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer

START, PAD, VIDEO, END = "<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"
IMAGE = START + PAD + END
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
TEXT_NAMES = ["input_ids", "attention_mask", "mm_token_type_ids"]
IMAGE_NAMES = ["pixel_values", "image_grid_thw", "pixel_values_geometry", "geometry_sizes", "num_views"]
# Features of a photo of 64 x 48 pixels: 56 x 28 of it are 2 squares of 2 x 2 patches; of one of 48 x 64, 4.
WIDE, HIGH = 2, 4


@pytest.fixture(scope="module")
def processor() -> Spa3VLMProcessor:
    return tiny_processor()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "room.mp4")


def text_of(processor, inputs: BatchFeature) -> list[str]:
    """What the tokens of each row say, without padding."""
    rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    return [processor.tokenizer.decode(ids[mask == 1]) for ids, mask in rows]


def shades(inputs: BatchFeature) -> list[int]:
    """Which frames of a video each image is."""
    return numbers_of(np.uint8(255 * view.permute(1, 2, 0).numpy()) for view in views_of(inputs))


def assert_equal(given, expected):
    assert list(given) == list(expected)
    for name, tensor in given.items():
        assert torch.equal(tensor, expected[name]), name


# Images and text.


def test_text_and_images_give_all_that_the_model_takes(processor):
    inputs = processor(images=photo(0), text=IMAGE + "How many?", return_tensors="pt")
    assert list(inputs) == TEXT_NAMES + IMAGE_NAMES
    assert set(inputs) == set(processor.model_input_names)


def test_each_placeholder_becomes_one_for_each_feature_of_its_image(processor):
    images = [photo(0, 64, 48), photo(1, 48, 64)]
    inputs = processor(images=images, text=f"{IMAGE}and{IMAGE}?", return_tensors="pt")
    assert text_of(processor, inputs) == [f"{START}{PAD * WIDE}{END}and{START}{PAD * HIGH}{END}?"]


def test_token_types_tell_placeholders_from_text(processor):
    inputs = processor(images=photo(0), text=f"a{IMAGE}b", return_tensors="pt")
    assert inputs["mm_token_type_ids"].tolist() == [[0, 0, *[1] * WIDE, 0, 0]]


def test_images_are_those_of_the_image_processor(processor):
    scenes = [[photo(0), photo(1)], [photo(2, 48, 64)]]
    inputs = processor(images=scenes, text=[IMAGE * 2, IMAGE], padding=True, return_tensors="pt")
    assert_equal({name: inputs[name] for name in IMAGE_NAMES}, processor.image_processor(scenes, return_tensors="pt"))


def test_text_alone_gives_text_alone(processor):
    assert list(processor(text="Hello", return_tensors="pt")) == TEXT_NAMES


@pytest.mark.parametrize("images", [[], [[]]], ids=["no image", "a row of none"])
def test_no_images_for_no_placeholders_is_text_alone(images, processor):
    assert list(processor(images=images, text="Hello", return_tensors="pt")) == TEXT_NAMES


def test_images_alone_give_one_scene(processor):
    inputs = processor(images=[photo(0), photo(1)], return_tensors="pt")
    assert list(inputs) == IMAGE_NAMES and inputs["num_views"].tolist() == [2]


def test_images_in_one_list_are_dealt_to_rows_by_their_placeholders(processor):
    photos = [photo(index) for index in range(3)]
    text = [IMAGE * 2, "none here", IMAGE]
    flat = processor(images=photos, text=text, padding=True, return_tensors="pt")
    assert flat["num_views"].tolist() == [2, 0, 1]
    assert_equal(flat, processor(images=[photos[:2], [], photos[2:]], text=text, padding=True, return_tensors="pt"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_its_rows_one_by_one(side, processor):
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
    with_images = [rows[0], rows[2]]
    for name in ("pixel_values", "image_grid_thw", "pixel_values_geometry", "geometry_sizes"):
        assert torch.equal(batch[name], torch.cat([row[name] for row in with_images])), name
    assert batch["num_views"].tolist() == [2, 0, 1]


def test_trls_collator_gets_what_it_asks_for(processor):
    # Texts that hold the marks of a conversation already, padded on the right.
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


def test_options_reach_tokenizer_and_image_processor(processor):
    inputs = processor(
        images=photo(0), text=IMAGE, padding="max_length", max_length=20, image_width=84, return_tensors="pt"
    )
    assert inputs["input_ids"].shape == (1, 20) and inputs["geometry_sizes"].tolist() == [[56, 84]]


def test_options_can_be_told_apart_by_what_they_are_for(processor):
    inputs = processor(
        images=photo(0),
        text=IMAGE,
        text_kwargs={"padding": "max_length", "max_length": 20},
        images_kwargs={"image_width": 84},
        return_tensors="pt",
    )
    assert inputs["input_ids"].shape == (1, 20) and inputs["geometry_sizes"].tolist() == [[56, 84]]


def test_text_after_the_images_can_be_truncated(processor):
    inputs = processor(
        images=photo(0), text=IMAGE + "abcdef", max_length=WIDE + 4, truncation=True, return_tensors="pt"
    )
    assert text_of(processor, inputs) == [f"{START}{PAD * WIDE}{END}ab"]


# Latents that are appended to the text.


def test_latents_get_placeholders_after_the_last_image_of_their_scene():
    processor = tiny_processor(num_appended_tokens=3)
    text = [f"{IMAGE}and{IMAGE}?", "none", f"{IMAGE}!"]
    inputs = processor(images=[photo(index) for index in range(3)], text=text, padding=True, return_tensors="pt")
    image, latents = START + PAD * WIDE + END, START + PAD * 3 + END
    assert text_of(processor, inputs) == [f"{image}and{image}{latents}?", "none", f"{image}{latents}!"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_placeholders_of_latents_are_of_the_type_of_text(side):
    processor = tiny_processor(num_appended_tokens=3)
    text = [f"{IMAGE}{IMAGE}?", "none", f"{IMAGE}!"]
    images = [photo(index) for index in range(3)]
    inputs = processor(images=images, text=text, padding=True, padding_side=side, return_tensors="pt")
    for row, number in enumerate([2, 0, 1]):
        types = inputs["mm_token_type_ids"][row]
        placeholders = (inputs["input_ids"][row] == processor.image_token_id).nonzero().flatten()
        assert types.nonzero().flatten().tolist() == placeholders[: number * WIDE].tolist()


# Conversations.


def test_a_conversation_is_rendered_as_qwen_does(processor):
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Sure?"},
    ]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        f"{SYSTEM}<|im_start|>user\n{IMAGE}How many?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_system_message_of_its_own_replaces_the_usual_one(processor):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n"
    assert processor.apply_chat_template(messages) == expected


@pytest.mark.parametrize("content", ["There are", [{"type": "text", "text": "There are"}]], ids=["string", "parts"])
def test_an_answer_that_was_begun_can_be_continued(content, processor):
    messages = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": content}]
    text = processor.apply_chat_template(messages, continue_final_message=True)
    assert text == f"{SYSTEM}<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\nThere are"


@pytest.mark.parametrize("key", ["image", "path", "url", "base64", "image_url"])
def test_an_image_can_be_named_in_every_way_of_a_conversation(key, processor, tmp_path):
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
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    assert_equal(prepare(processor, messages), prepare(processor, conversation([photo(0)], "What?")))


def test_a_conversation_gives_what_its_text_and_images_give(processor):
    messages = conversation([photo(0), photo(1)], "How many?")
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    expected = processor(images=[photo(0), photo(1)], text=text, return_tensors="pt")
    assert_equal(prepare(processor, messages), expected)


def test_a_conversation_is_left_as_it_was(processor, video):
    content = [{"type": "video", "path": str(video)}, {"type": "text", "text": "Where?"}]
    messages = [{"role": "user", "content": content}]
    before = copy.deepcopy(messages)
    prepare(processor, messages, num_frames=2)
    assert messages == before


def answers(processor, inputs: BatchFeature) -> list[str]:
    rows = zip(inputs["input_ids"], inputs["assistant_masks"], strict=True)
    return [processor.tokenizer.decode(ids[mask == 1]) for ids, mask in rows]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("num_appended_tokens", [0, 3])
def test_the_mask_of_answers_marks_them_and_their_end_alone(side, num_appended_tokens, video):
    processor = tiny_processor(num_appended_tokens=num_appended_tokens)
    image = {"type": "image", "image": photo(0)}
    film = {"type": "video", "path": str(video)}
    conversations = [
        [
            {"role": "user", "content": [image, film, {"type": "text", "text": "How many?"}]},
            {"role": "assistant", "content": "Two."},
            {"role": "user", "content": [{"type": "text", "text": "And"}, image, {"type": "text", "text": "here?"}]},
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
    assert answers(processor, inputs) == ["Two.<|im_end|>\nThree.<|im_end|>\n", "Good day to you.<|im_end|>\n"]


def test_marks_in_a_question_can_be_taken_as_its_text(processor):
    question = f"What does {PAD} or <|im_end|> mean?"
    inputs = processor.apply_chat_template(
        conversation([photo(0)], question), tokenize=True, return_dict=True, return_tensors="pt",
        sanitize_control_tokens=True,
    )  # fmt: skip
    assert question in text_of(processor, inputs)[0]
    assert (inputs["input_ids"] == processor.image_token_id).sum() == inputs["mm_token_type_ids"].sum() == WIDE


# Videos.


def test_a_video_in_a_conversation_becomes_images_spread_over_it(processor, video):
    content = [{"type": "video", "path": str(video)}, {"type": "text", "text": "Where?"}]
    inputs = prepare(processor, [{"role": "user", "content": content}], num_frames=4)
    assert shades(inputs) == [0, 6, 12, 19] and inputs["num_views"].tolist() == [4]
    assert (START + PAD * WIDE + END) * 4 + "Where?" in text_of(processor, inputs)[0]


@pytest.mark.parametrize("key", ["video", "path", "url"])
def test_a_video_can_be_named_in_every_way_of_a_conversation(key, processor, video):
    content = [{"type": "video", key: str(video)}, {"type": "text", "text": "Where?"}]
    assert shades(prepare(processor, [{"role": "user", "content": content}], num_frames=2)) == [0, 19]


def test_images_and_videos_keep_their_order_in_a_conversation(processor, video):
    white = photo(0).point(lambda value: 255)
    content = [
        {"type": "image", "image": white},
        {"type": "video", "path": str(video)},
        {"type": "text", "text": "and"},
        {"type": "image", "image": white},
    ]
    assert shades(prepare(processor, [{"role": "user", "content": content}], num_frames=2)) == [20, 0, 19, 20]


def test_a_video_gives_as_many_frames_as_the_processor_says(video):
    processor = tiny_processor(num_frames=3)
    assert shades(processor(videos=video, text=START + VIDEO + END, return_tensors="pt")) == [0, 9, 19]


def test_the_number_of_frames_can_be_given_beside_a_conversation(processor, video):
    messages = [{"role": "user", "content": [{"type": "video", "path": str(video)}]}]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", num_frames=2
    )
    assert inputs["num_views"].tolist() == [2]


def test_a_conversation_that_is_only_rendered_keeps_the_place_of_its_video(processor, video):
    messages = [{"role": "user", "content": [{"type": "video", "path": str(video)}, {"type": "text", "text": "Go."}]}]
    text = processor.apply_chat_template(messages)
    assert text == f"{SYSTEM}<|im_start|>user\n{START}{VIDEO}{END}Go.<|im_end|>\n"
    given = processor(videos=[video], text=text, num_frames=3, return_tensors="pt")
    expected = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"num_frames": 3}
    )
    assert_equal(given, expected)


FRAMES = [photo(index) for index in range(4)]
VIDEOS = {
    "a list of frames": FRAMES,
    "a list of one list": [FRAMES],
    "a tuple of arrays": tuple(np.array(frame) for frame in FRAMES),
    "an array": np.stack([np.array(frame) for frame in FRAMES]),
    "a list of one array": [np.stack([np.array(frame) for frame in FRAMES])],
    "a tensor": torch.from_numpy(np.stack([np.array(frame) for frame in FRAMES])).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("kind", VIDEOS)
def test_a_video_given_as_frames_is_its_images(kind, processor):
    expected = processor(images=FRAMES, text=IMAGE * 4 + "?", return_tensors="pt")
    assert_equal(processor(videos=VIDEOS[kind], text=f"{START}{VIDEO}{END}?", return_tensors="pt"), expected)


def test_frames_of_a_video_can_be_named_by_their_paths(processor, tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(2)]
    for path, frame in zip(paths, FRAMES, strict=False):
        frame.save(path)
    content = [{"type": "video", "video": paths}, {"type": "text", "text": "Where?"}]
    assert_equal(
        prepare(processor, [{"role": "user", "content": content}]),
        prepare(processor, conversation(FRAMES[:2], "Where?")),
    )


def test_frames_are_spread_over_those_given_where_their_number_is_asked_for(processor):
    given = processor(videos=FRAMES, text=VIDEO, num_frames=2, return_tensors="pt")
    assert torch.equal(
        given["pixel_values"], processor.image_processor([FRAMES[0], FRAMES[3]], return_tensors="pt")["pixel_values"]
    )


def test_images_and_videos_of_several_rows_keep_their_order(processor, video):
    white = photo(0).point(lambda value: 255)
    text = [f"{IMAGE}{START}{VIDEO}{END}", "none", f"{START}{VIDEO}{END}{IMAGE}{IMAGE}"]
    for images in ([white] * 3, [[white], [], [white] * 2]):
        inputs = processor(
            images=images, videos=[video, FRAMES[:1]], text=text, num_frames=2, padding=True, return_tensors="pt"
        )
        assert inputs["num_views"].tolist() == [3, 0, 3]
        assert shades(inputs)[:3] == [20, 0, 19] and shades(inputs)[4:] == [20, 20]


# Saving and loading.


@pytest.mark.parametrize("load", [Spa3VLMProcessor, AutoProcessor])
def test_everything_that_was_chosen_is_saved_and_loaded(load, tmp_path):
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    processor = Spa3VLMProcessor(
        Spa3VLMImageProcessor(image_width=84), byte_tokenizer(), template, num_frames=5, num_appended_tokens=7
    )
    processor.save_pretrained(tmp_path)
    loaded = load.from_pretrained(tmp_path)
    assert type(loaded) is Spa3VLMProcessor and type(loaded.image_processor) is Spa3VLMImageProcessor
    assert (loaded.num_frames, loaded.num_appended_tokens, loaded.chat_template) == (5, 7, template)
    arguments = {"images": photo(0), "text": IMAGE + "What?", "return_tensors": "pt"}
    assert_equal(loaded(**arguments), processor(**arguments))


def test_options_can_be_changed_on_loading(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path, num_frames=8).num_frames == 8


def test_torchvision_is_not_needed(video):
    code = f"""
        import sys
        sys.modules["torchvision"] = None  # as if it were not installed
        from spa3r import Spa3VLMImageProcessor, Spa3VLMProcessor
        from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer
        processor = Spa3VLMProcessor(Spa3VLMImageProcessor(image_width=56), byte_tokenizer())
        print(processor(videos={str(video)!r}, text="<|video_pad|>", num_frames=2, return_tensors="pt")["num_views"])
    """
    output = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert output.stdout == "tensor([2])\n"


# Wrong input.


WRONG_CALLS = {
    "more images": ({"images": [photo(0)] * 2, "text": IMAGE}, f"Row 0 has 2 images, but its text 1 `{PAD}`; give"),
    "fewer images": ({"images": photo(0), "text": IMAGE * 2}, f"Row 0 has 1 images, but its text 2 `{PAD}`; give"),
    "no images": ({"text": ["none", IMAGE]}, f"Row 1 has 0 images, but its text 1 `{PAD}`; give"),
    "images side by side": ({"images": [photo(0)] * 2, "text": PAD * 2}, f"Row 0 has two `{PAD}` side by side"),
    "an empty list": ({"images": [], "text": IMAGE}, f"Row 0 has 0 images, but its text 1 `{PAD}`; give"),
    "no placeholde": ({"images": photo(0), "text": "none"}, f"Row 0 has 1 images, but its text 0 `{PAD}`; give"),
    "flat images": (
        {"images": [photo(0)] * 3, "text": [IMAGE, IMAGE]},
        f"There are 3 images, but the 2 texts have 2 `{PAD}`; give",
    ),
    "images of other rows": (
        {"images": [[photo(0)], [photo(1)]], "text": [IMAGE * 2, "none"]},
        f"Row 0 has 1 images, but its text 2 `{PAD}`; give",
    ),
    "other rows": ({"images": [[photo(0)]], "text": [IMAGE] * 2}, "`images` has 1 rows, but `text` 2; give"),
    "mixture": ({"images": [[photo(0)], photo(0)], "text": [IMAGE] * 2}, "`images` must be a list of images, o"),
    "images of other rows beside a video": (
        {"images": [[photo(0)], [photo(1)]], "text": [IMAGE * 2, VIDEO], "videos": FRAMES},
        f"Row 0 has 1 images, but its text 2 `{PAD}`; give",
    ),
    "fewer videos": ({"videos": FRAMES, "text": VIDEO * 2}, f"There are 1 videos, but 2 `{VIDEO}` in the text; give"),
    "more videos": ({"videos": [FRAMES, FRAMES], "text": VIDEO}, f"There are 2 videos, but 1 `{VIDEO}` in the text"),
    "no videos": ({"videos": [], "text": VIDEO}, f"There are 0 videos, but 1 `{VIDEO}` in the text; give"),
    "a video placeholder alone": ({"text": VIDEO}, f"Found 1 {VIDEO} tokens in the text but no videos were passed"),
    "no frames": ({"videos": [[]], "text": VIDEO}, "A video is given as a list without frames; give at least one"),
    "an image as video": (
        {"videos": photo(0), "text": VIDEO},
        "A video must be a path, a URL, a list of frames or an",
    ),
    "a number as video": (
        {"videos": 3, "text": VIDEO},
        "A video must be a path, a URL, a list of frames or an array of 4 dimensions, got int",
    ),
    "no frame": ({"videos": FRAMES, "text": VIDEO, "num_frames": 0}, "`num_frames` must be at least 1, got 0"),
    "missing video": ({"videos": "gone.mp4", "text": VIDEO}, "The video `gone.mp4` cannot be read: No such file"),
    "missing image": ({"images": "gone.jpg", "text": IMAGE}, "The image `gone.jpg` cannot be read: there is no such"),
    "videos alone": ({"videos": FRAMES}, f"`videos` need a `text` with a `{VIDEO}` for each"),
    "sound": ({"text": "Hi.", "audio": np.zeros(9)}, "`audio` is given, but this model takes text, images and videos"),
    "nothing": ({}, "You need to provide at least one input"),
    "a number as text": ({"text": 5}, "`text` must be a string or a list of strings, got 5"),
    "no texts": ({"text": []}, "`text` must be a string or a list of strings, got []"),
    "words": ({"text": [["a", "b"]]}, "`text` must be a string or a list of strings, got [['a', 'b']]"),
    "truncated placeholders": (
        {"images": photo(0), "text": IMAGE, "max_length": 2, "truncation": True},
        "Mismatch in `image` token count",
    ),
    "unknown": ({"text": "Hi.", "paddin": True}, "The processor has no options ['paddin']; it takes `num_frames`"),
    "of the library's videos": (
        {"text": VIDEO, "videos": FRAMES, "fps": 2},
        "The processor has no options ['fps']",
    ),
    "for the library's videos": (
        {"text": VIDEO, "videos": FRAMES, "videos_kwargs": {"num_frames": 2}},
        "The processor has no options ['videos_kwargs']; it takes `num_frames`",
    ),
    "unknown for text": (
        {"text": "Hi.", "text_kwargs": {"paddin": True}},
        "The processor has no options ['paddin']",
    ),
    "unknown for images": (
        {"images": photo(0), "text": IMAGE, "images_kwargs": {"width": 56}},
        "The processor has no options ['width']",
    ),
}


@pytest.mark.parametrize("kind", WRONG_CALLS)
def test_a_wrong_call_is_refused_in_one_sentence(kind, processor):
    arguments, message = WRONG_CALLS[kind]
    with pytest.raises(ValueError) as raised:
        processor(**arguments)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


@pytest.mark.parametrize("forged", [PAD, IMAGE, VIDEO])
@pytest.mark.parametrize("num_images", [0, 1])
def test_a_question_cannot_pretend_to_hold_an_image(num_images, forged, processor):
    with pytest.raises(ValueError, match="image_pad|video_pad"):
        prepare(processor, conversation([photo(0)] * num_images, f"What is {forged} here?"))


def test_the_end_of_an_image_in_a_question_changes_no_image(processor):
    inputs = prepare(processor, conversation([photo(0)], f"What is {END} here?"))
    assert inputs["mm_token_type_ids"].sum() == WIDE
    assert torch.equal(inputs["mm_token_type_ids"] == 1, inputs["input_ids"] == processor.image_token_id)


@pytest.mark.parametrize("tokenize", [True, False])
def test_a_part_of_another_kind_is_refused_by_its_type(tokenize, processor):
    messages = [{"role": "user", "content": [{"type": "sound"}, {"type": "text", "text": "What?"}]}]
    with pytest.raises(TemplateError, match="must be an image, a video or text, got the type `sound`"):
        processor.apply_chat_template(messages, tokenize=tokenize)


def test_a_video_of_which_nothing_is_said_is_refused(processor):
    messages = [{"role": "user", "content": [{"type": "video", "file": "room.mp4"}]}]
    with pytest.raises(ValueError, match=r"A video needs a `path`, a `url`, or frames .* keys \['file', 'type'\]"):
        prepare(processor, messages)


def test_an_image_of_which_nothing_is_said_is_refused(processor):
    messages = [{"role": "user", "content": [{"type": "image", "file": "room.jpg"}]}]
    with pytest.raises(ValueError, match="Row 0 has 0 images, but its text 1"):
        prepare(processor, messages)


def test_an_empty_conversation_is_refused(processor):
    with pytest.raises(ValueError, match="The conversation has no message"):
        processor.apply_chat_template([])


def test_an_unknown_option_beside_a_conversation_is_refused(processor):
    with pytest.raises(ValueError, match=r"no options \['paddin'\]"):
        prepare(processor, conversation([], "Hi."), paddin=True)


@pytest.mark.parametrize("unknown", [None, "?"])
def test_a_tokenizer_without_the_special_tokens_is_refused_with_those_missing(unknown):
    backend = Tokenizer(models.BPE(vocab={"a": 0, "?": 1}, merges=[], unk_token=unknown))
    backend.add_special_tokens([START, END])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unknown)
    missing = re.escape(f"The tokenizer has no token ['{PAD}', '{VIDEO}']; use that of a Qwen2.5-VL checkpoint")
    with pytest.raises(ValueError, match=missing):
        Spa3VLMProcessor(Spa3VLMImageProcessor(), tokenizer)


@pytest.mark.parametrize("given", ["nothing", "an image processor", "unknown"])
def test_a_processor_needs_both_of_its_parts_and_nothing_else(given):
    arguments = {
        "nothing": {},
        "an image processor": {"image_processor": Spa3VLMImageProcessor()},
        "unknown": {"image_processor": Spa3VLMImageProcessor(), "tokenizer": byte_tokenizer(), "num_frame": 3},
    }[given]
    with pytest.raises(TypeError):
        Spa3VLMProcessor(**arguments)
