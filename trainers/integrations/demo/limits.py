"""Limits of what visitors of the page send."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What may be uploaded and asked; each is refused with a sentence that names it."""

    photos: int = 32
    megapixels: float = 25
    seconds: float = 120
    question_characters: int = 1000
    new_tokens: int = 64
