import pytest

from spa3r.configuration import Spa3VLMConfig, load_preset
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer

TEXT = "How far is the chaise longue – 2 m? Éh, 椅子!\n"


def test_a_text_becomes_one_token_for_each_byte_and_back():
    tokenizer = byte_tokenizer()
    ids = tokenizer(TEXT)["input_ids"]
    assert len(ids) == len(TEXT.encode()) and max(ids) < 256
    assert set(range(256)) <= set(tokenizer.get_vocab().values())
    assert tokenizer.decode(ids) == TEXT


def test_a_special_token_is_one_token_within_a_text_and_left_out_of_an_answer():
    tokenizer = byte_tokenizer()
    ids = tokenizer("a<|image_pad|>b")["input_ids"]
    assert ids[1:2] == [tokenizer.convert_tokens_to_ids("<|image_pad|>")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"


def test_shorter_texts_are_padded_on_the_left():
    assert byte_tokenizer()(["ab", "a"], padding=True)["attention_mask"] == [[1, 1], [0, 1]]


@pytest.mark.parametrize("preset", ["spa3-vlm-tiny"])
def test_ids_are_those_of_the_presets(preset):
    config, tokenizer = Spa3VLMConfig(**load_preset(preset)).vlm_config, byte_tokenizer()
    text_config = config.text_config
    expected = {
        "<|endoftext|>": text_config.pad_token_id,
        "<|im_end|>": text_config.eos_token_id,
        "<|vision_start|>": config.vision_start_token_id,
        "<|vision_end|>": config.vision_end_token_id,
        "<|image_pad|>": config.image_token_id,
        "<|video_pad|>": config.video_token_id,
    }
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in expected} == expected
    assert len(tokenizer) == text_config.vocab_size
