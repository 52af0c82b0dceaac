"""The mark of a complete checkpoint: which files it had, so that damage is found before a run goes on from it."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError, safe_open

from ...data_scripts.common.files import write_json

MARK = "complete.json"
MAX_HASHED_BYTES = 1 << 20


def mark_complete(folder: str | Path, accelerator: Accelerator, global_step: int):
    """Mark a checkpoint once every process has written its part; every process must call it."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        files = {name: _fingerprint(file) for name, file in _files(Path(folder)).items()}
        mark = {"global_step": global_step, "world_size": accelerator.num_processes, "files": files}
        write_json(Path(folder) / MARK, mark)


def is_complete(checkpoint: Path) -> bool:
    """Whether all of a checkpoint was written."""
    return (checkpoint / MARK).is_file()


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint that was complete once, as a part of a sentence; `None` if nothing is.

    Sizes of all files are compared with those that were written, and contents of small ones. The marks of older
    versions name no files.
    """
    try:
        mark = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        for name, written in mark.get("files", {}).items():
            file = checkpoint / name
            if not file.is_file():
                return f"`{name}` is missing"
            if file.stat().st_size != written[0]:
                return f"`{name}` has {file.stat().st_size} bytes instead of {written[0]}"
            if _fingerprint(file) != written:
                return f"the content of `{name}` has changed"
    except (ValueError, TypeError, AttributeError, LookupError):
        return f"`{MARK}` cannot be read"
    return None


def find_unreadable_file(checkpoint: Path) -> str | None:
    """As `find_damage`, by looking into each file, as is worth while once reading the checkpoint has failed."""
    for name, file in _files(checkpoint).items():
        try:
            _look_into(file)
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
            return f"`{name}` cannot be read: {error}"
    return None


def _look_into(file: Path):
    if file.suffix == ".json" and not isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
        raise ValueError("it holds no JSON object")
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as content:
            content.keys()
    elif file.suffix in (".pt", ".pth", ".bin"):
        with zipfile.ZipFile(file) as content:
            if (broken := content.testzip()) is not None:
                raise ValueError(f"its part {broken} is broken")


def _files(folder: Path) -> dict[str, Path]:
    """All files of a checkpoint besides its mark, by relative path."""
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {name: file for name, file in files.items() if name != MARK}


def _fingerprint(file: Path) -> list[Any]:
    """The size of a file, and the hash of a small one: hashing all weights would hold up training."""
    size = file.stat().st_size
    return [size] if size > MAX_HASHED_BYTES else [size, hashlib.sha256(file.read_bytes()).hexdigest()]
