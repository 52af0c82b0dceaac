"""Read the tensors of a published checkpoint without ever running a pickle."""

import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["State", "one_per_line", "read_tensors", "require_exact_tensors"]

State = Mapping[str, Tensor]
# Tensors that a message names of each part of a model.
NAMED_OF_A_PART = 3


def read_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read a `.safetensors` file, a folder of them, or a PyTorch file of tensors.

    A PyTorch file may hold its tensors under `state_dict`, as Lightning's do.

    Raises:
        FileNotFoundError: If the file does not exist, or the folder holds no `.safetensors` file.
        ValueError: If the file is damaged, or holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint at `{path}`; check the path.")
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"The folder `{path}` holds no `.safetensors` file; name the checkpoint file itself.")
    try:
        if files[0].suffix == ".safetensors":
            return {name: tensor for file in files for name, tensor in load_file(file).items()}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"`{path}` is damaged, or holds Python objects that could run code and are therefore not loaded; if you "
            "trust its origin, save its `state_dict` alone, preferably as safetensors."
        ) from error
    # On a file that is no pickle, torch's unpickler fails with whatever its first bytes happen to mean.
    except (SafetensorError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"`{path}` is damaged or not a checkpoint ({reason}); download it again.") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ValueError(f"`{path}` is not a checkpoint: it must hold tensors by name, or a `state_dict` of them.")
    return content


def one_per_line(names: Iterable[str]) -> str:
    """Format names for the end of an error message."""
    return "".join(f"\n  {name}" for name in names)


def require_exact_tensors(where: str, missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[tuple]):
    """Refuse a checkpoint whose tensors are not exactly those that the model needs.

    Args:
        where (`str`): Beginning of the message: which checkpoint does not fit what.
        missing, unexpected (`Iterable[str]`): Names of tensors.
        misshapen (`Iterable[tuple]`): For each tensor its name, its shape, and that of the model.

    Raises:
        ValueError: If there is any.
    """
    wrong = [(name, "missing") for name in sorted(missing)]
    wrong += [(name, "not in the model") for name in sorted(unexpected)]
    wrong += [(name, f"shape {tuple(found)} instead of {tuple(shape)}") for name, found, shape in misshapen]
    if wrong:
        parts: dict[str, list[str]] = {}
        for name, problem in wrong:
            parts.setdefault(name.partition(".")[0], []).append(f"`{name}`: {problem}")
        shown = [line for lines in parts.values() for line in lines[:NAMED_OF_A_PART]]
        rest = [f"... and {len(wrong) - len(shown)} more"] if len(wrong) > len(shown) else []
        raise ValueError(f"{where} in {len(wrong)} tensors; copy or convert it again:{one_per_line(shown + rest)}")
