"""Instruction sets, as TRL's SFTTrainer takes them."""

import hashlib
import math
from pathlib import Path

from datasets import Dataset, concatenate_datasets, load_dataset

__all__ = ["digest_instructions", "load_instructions"]

COLUMNS = ("images", "messages")


def load_instructions(sources: list[str], seed: int) -> Dataset:
    """Load instruction sets in TRL's conversational vision format, one after another.

    Args:
        sources (`list[str]`): `FOLDER`, with `data/*.parquet` in it, or `FOLDER@SHARE`.
        seed (`int`): Which records a share takes.

    Raises:
        ValueError: If a folder holds no instruction set, one without images or messages, or a share is none.
    """
    parts = []
    for source in sources:
        folder, _, share = source.partition("@")
        files = [str(file) for file in _files(folder)]
        if not files:
            raise ValueError(f"`{folder}` holds no instruction set: there is no `data/*.parquet` in it.")
        part = load_dataset("parquet", data_files=files, split="train")
        if missing := [name for name in COLUMNS if name not in part.column_names]:
            raise ValueError(f"The instruction set `{folder}` has no column {missing}, but {part.column_names}.")
        if share:
            part = part.shuffle(seed=seed).select(range(math.ceil(_share(source, share) * len(part))))
        parts.append(part.select_columns(list(COLUMNS)))
    return concatenate_datasets(parts)


def digest_instructions(sources: list[str]) -> str:
    """Tells instruction sets from others in the same folders: a hash of the names and sizes of their files."""
    files = [file for source in sources for file in _files(source.partition("@")[0])]
    names = "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
    return hashlib.sha256(names.encode()).hexdigest()


def _files(folder: str) -> list[Path]:
    return sorted((Path(folder) / "data").glob("*.parquet"))


def _share(source: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ValueError(f"The share of an instruction set must be in (0, 1], got `{source}`; leave `@` out for all.")
    return share
