"""Write files and folders completely or not at all, claim output folders, and sort file names."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

MAX_NAMED = 3


def unfinished_path(path: str | os.PathLike) -> Path:
    """Where a file or folder is written until it is complete: hidden, beside its final place."""
    path = Path(path)
    return path.with_name(f".{path.name}.partial")


@contextmanager
def replace_when_complete(path: str | os.PathLike, temporary: str | os.PathLike | None = None) -> Iterator[Path]:
    """Give a place to write a file or folder to, and move it to `path` when the block ends without an error.

    If the block fails, what it wrote is removed and `path` stays as it was. What a killed process left is removed
    first.

    Args:
        path (`str` or `os.PathLike`): The final place; an earlier file, or an empty folder, is replaced.
        temporary (`str` or `os.PathLike`, *optional*):
            The place to write to, on the same file system. The default, beside `path`, suits one process at a time;
            where several may write the same `path` at once, each needs a place of its own.
    """
    temporary = unfinished_path(path) if temporary is None else Path(temporary)
    _remove(temporary)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8, complete or not at all."""
    with replace_when_complete(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a binary file, complete or not at all."""
    with replace_when_complete(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | os.PathLike, content: Any, **options: Any) -> None:
    """Write a JSON file, complete or not at all.

    Args:
        path (`str` or `os.PathLike`): The file.
        content (`Any`): JSON types.
        options: For `json.dumps`; by default keys are sorted and the indent is 2.
    """
    write_text(path, json.dumps(content, **{"indent": 2, "sort_keys": True} | options) + "\n")


@contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Give a folder to write into, which becomes `folder` when the block ends without an error.

    Raises:
        FileExistsError: If `folder` exists and is not an empty folder.
        ValueError: If another process is writing it.
    """
    require_empty_folder(folder)
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    if unfinished_path(folder).is_dir():
        with _locked(unfinished_path(folder), folder):
            pass  # what a killed process left
    with replace_when_complete(folder) as temporary:
        temporary.mkdir()
        with _locked(temporary, folder):
            yield temporary


@contextmanager
def _locked(folder: Path, final: str | os.PathLike) -> Iterator[None]:
    """Keep other processes from writing a folder; the operating system unlocks it when this process ends."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(
            f"Another process is writing `{final}`: wait until it has ended, or choose another output folder."
        ) from None
    except OSError:
        pass  # some network file systems lock no folders
    try:
        yield
    finally:
        os.close(descriptor)


def require_empty_folder(folder: str | os.PathLike) -> None:
    """Refuse an output folder that holds something.

    Raises:
        FileExistsError: If `folder` exists and is not an empty folder.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"`{folder}` exists and is not an empty folder; choose another output folder.")


def claim_folder(note: Path, settings: str) -> None:
    """Start a run in the folder of `note`, or continue the run there if it has the same settings.

    What interrupted runs left directly in the folder is removed.

    Args:
        note (`Path`): The file in the folder that keeps the settings of its first run.
        settings (`str`): Whatever decides the result, as a JSON object.

    Raises:
        ValueError: If the folder holds a run with other settings; names those that differ.
    """
    note.parent.mkdir(parents=True, exist_ok=True)
    if note.is_file():
        before = read_json_object(note, "remove it if the run in its folder is yours, or choose another folder")
        require_same_settings(note.parent, before, json.loads(settings))
    remove_unfinished(note.parent)
    if not note.is_file():
        write_text(note, settings)


def require_same_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to continue a run with other settings.

    Args:
        folder (`Path`): What the run writes; named in the error.
        before (`Mapping[str, Any]`): The settings of the run that is there, as JSON types.
        now (`Mapping[str, Any]`): The settings of the run to start, as JSON types.

    Raises:
        ValueError: If they differ; names the first settings that do.
    """
    changed = sorted(name for name in {**before, **now} if before.get(name) != now.get(name))
    if changed:
        shown = "; ".join(f"`{name}` was {before.get(name)}, is {now.get(name)}" for name in changed[:MAX_NAMED])
        raise ValueError(
            f"{folder} holds a run with other settings ({shown}): use the same settings, or choose another output "
            "folder."
        )


@contextmanager
def blame_file(place: str | os.PathLike, remedy: str) -> Iterator[None]:
    """Name a file or folder in whatever error the use of its damaged content raises.

    Args:
        place (`str` or `os.PathLike`): The file or folder.
        remedy (`str`): What to do about it, as the end of a sentence.

    Raises:
        ValueError: Instead of errors that values of a wrong kind raise. Errors of the operating system stay.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        if isinstance(error, ValueError) and str(place) in str(error):
            raise
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"`{place}` is damaged ({reason or type(error).__name__}): {remedy}.") from error


def read_json_object(path: str | os.PathLike, remedy: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it holds something else; names the file and ends with the remedy.
    """
    with blame_file(path, remedy):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__} instead of an object")
        return content


def remove_unfinished(folder: Path) -> None:
    """Remove what interrupted runs left in a folder; subfolders are not searched."""
    for leftover in folder.glob(".*.partial"):
        _remove(leftover)


def natural_key(name: str) -> list:
    """Sort key by the numbers in a name: `2.jpg` before `10.jpg`."""
    return [(int(part), part) if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
