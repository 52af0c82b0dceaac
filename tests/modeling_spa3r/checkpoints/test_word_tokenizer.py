import pytest
from refusals import refused

from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import SPECIAL_TOKENS
from spa3r.modeling_spa3r.checkpoints.word_tokenizer import train_word_tokenizer

TEXTS = ["Which is nearer, the chair or the sofa?", "The chair is 12.5 m away."] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_word_tokenizer(TEXTS, 400)


@pytest.mark.parametrize("text", ["Éh, 椅子! – 2 m?\n", "'s  I'll\t\n\n", "The chair is <|im_end|> ,  12.50 m ."])
def test_any_text_becomes_tokens_and_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_frequent_word_is_one_token(tokenizer):
    assert len(tokenizer("Which chair is nearer")["input_ids"]) == 4


def test_each_digit_is_one_token(tokenizer):
    ids = tokenizer(" 12.5")["input_ids"]
    assert [tokenizer.decode([each]) for each in ids] == [" ", "1", "2", ".", "5"]


def test_special_tokens_are_the_first(tokenizer):
    assert tokenizer.convert_ids_to_tokens(range(7)) == list(SPECIAL_TOKENS)


def test_a_special_token_is_left_out_of_an_answer(tokenizer):
    assert tokenizer.decode(tokenizer("sofa<|im_end|>")["input_ids"], skip_special_tokens=True) == "sofa"


def test_the_vocabulary_has_at_most_the_size_asked_for():
    assert len(train_word_tokenizer(TEXTS, 270)) == 270


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with refused("vocab_size", "262"):
        train_word_tokenizer(TEXTS, 262)
