"""A tokenizer of bytes with Qwen's special tokens, for demonstrations and tests: it needs no vocabulary file."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

__all__ = ["SPECIAL_TOKENS", "byte_tokenizer", "with_special_roles"]

# In the order of their ids, which start at 256 in a tokenizer of bytes and at 0 in one of words.
SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer whose ids 0 to 255 are the bytes of UTF-8, followed by Qwen's special tokens.

    It pads on the left, as generation needs.
    """
    # The library writes each byte as a printable character; sorting these keeps ids stable.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return with_special_roles(tokenizer)


def with_special_roles(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Say which of `SPECIAL_TOKENS` ends an answer and which pads; pad on the left, as generation needs."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
        padding_side="left",
    )
