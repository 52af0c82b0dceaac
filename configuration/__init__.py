"""Configurations, architecture presets and training recipes."""

import json
from pathlib import Path

from .configuration_spa3_vlm import Spa3VLMConfig
from .configuration_spa3r import Spa3RConfig, Spa3RTeacherConfig
from .configuration_vggt import VGGTConfig

__all__ = ["Spa3RConfig", "Spa3RTeacherConfig", "Spa3VLMConfig", "VGGTConfig", "load_preset"]

PRESETS = Path(__file__).parent / "presets"


def load_preset(name: str) -> dict:
    """Read the settings in which an architecture differs from the defaults of its configuration class.

    Args:
        name (`str`): Name of a preset, such as `"spa3r-base"`; or a JSON file, or a folder with a `config.json`.

    Returns:
        `dict`: Keyword arguments for the configuration class.

    Raises:
        ValueError: If there is no such preset or file, or the file is no JSON object.
    """
    path = Path(name)
    candidates = (PRESETS / f"{name}.json", path, path / "config.json")
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.json")))
        raise ValueError(f"There is no preset or file `{name}`; give one of {known}, or a config.json.")
    try:
        settings = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"`{file}` is no preset, as it is not JSON ({error}): correct it, or give another."
        ) from error
    if not isinstance(settings, dict):
        raise ValueError(f"`{file}` is no preset: it must be a JSON object, got {settings!r:.80}.")
    return settings
