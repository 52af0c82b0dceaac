"""The trained nano checkpoints that ship with the package."""

from pathlib import Path

__all__ = ["nano_path"]

FOLDER = Path(__file__).resolve().parent


def nano_path(name: str) -> str:
    """The folder of a trained model that ships with the package.

    Args:
        name (`str`):
            `"spa3r-nano"`, a Spa3R with its teachers; `"spa3-vlm-nano"`, the Spa3-VLM around it; or
            `"spa3-vlm-nano-text"`, its twin that was trained on the same questions without images, for comparison.

    Returns:
        `str`: For `from_pretrained`.

    Raises:
        ValueError: If there is no such model in this installation.

    Example:

    ```python
    >>> from transformers import AutoModel
    >>> import spa3r

    >>> model = AutoModel.from_pretrained(spa3r.nano_path("spa3r-nano"))
    ```
    """
    shipped = sorted(file.parent.name for file in FOLDER.glob("*/model.safetensors"))
    if name not in shipped:
        raise ValueError(f"No model `{name}` ships with this installation; there are: {', '.join(shipped) or 'none'}.")
    return str(FOLDER / name)
