"""A tokenizer whose tokens are the frequent words of some texts: short inputs, a small vocabulary, a small model."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .byte_tokenizer import SPECIAL_TOKENS, with_special_roles

__all__ = ["train_word_tokenizer"]


def train_word_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer by byte-pair encoding: a frequent word becomes one token, other words are spelled.

    Any text decodes to itself, because all bytes are tokens, too. Each digit is a token of its own, so numbers are
    read and written digit by digit. Ids 0 to 6 are Qwen's special tokens. The same texts give the same ids.

    Args:
        texts (`Iterable[str]`): What the model reads and writes.
        vocab_size (`int`): Most ids: at least 263, for the special tokens and the bytes.

    Raises:
        ValueError: If `vocab_size` is too small.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < (least := len(SPECIAL_TOKENS) + len(alphabet)):
        raise ValueError(
            f"`vocab_size` must be at least {least}, for special tokens and bytes, got {vocab_size}; raise it."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return with_special_roles(tokenizer)
