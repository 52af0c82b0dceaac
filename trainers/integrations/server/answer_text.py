"""The text of an answer while its tokens arrive."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

# What a decoder puts for the first bytes of a character whose other bytes are still to come.
INCOMPLETE = "\ufffd"


class AnswerText:
    """Decodes tokens as they arrive, and ends at a stop text. Whitespace around the answer is left out.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Decodes tokens.
        stops (`Sequence[str]`): Texts that end the answer, and are not part of it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]):
        self.tokenizer, self.stops = tokenizer, stops
        self.tokens: list[int] = []
        self.is_stopped = False
        self._num_sent = 0

    def add(self, tokens: Sequence[int], is_last: bool = False) -> str:
        """Take new tokens; returns the new text that is sure, all of it with the last tokens."""
        self.tokens += tokens
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True).lstrip()
        ends = [text.index(stop) for stop in self.stops if stop in text]
        if ends:
            self.is_stopped, text = True, text[: min(ends)]
        elif not is_last:
            text = text.rstrip(INCOMPLETE)
            text = text[: len(text) - self._num_held(text)]
        text = text.rstrip()
        new, self._num_sent = text[self._num_sent :], max(self._num_sent, len(text))
        return new

    def _num_held(self, text: str) -> int:
        """Number of last characters that may be the beginning of a stop text."""
        lengths = [length for stop in self.stops for length in range(1, len(stop)) if text.endswith(stop[:length])]
        return max(lengths, default=0)
