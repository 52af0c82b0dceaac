"""Loading a Spa3-VLM that is whole: where weights are missing, the library goes on with random ones."""

import re
from pathlib import Path

from transformers.integrations import is_deepspeed_zero3_enabled

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ..spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration

__all__ = ["check_place", "load_spa3_vlm"]

# What `save_pretrained` of model and processor write. Without the first the library would make the full-size model.
NEEDED = ("config.json", "processor_config.json", "tokenizer.json")


def check_place(name: str):
    """Refuse what is neither a folder nor could be a name on the Hub."""
    if not Path(name).is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise FileNotFoundError(f"There is no checkpoint at `{name}`; give a folder, or OWNER/NAME of one on the Hub.")


def load_spa3_vlm(name: str, **options) -> Spa3VLMForConditionalGeneration:
    """Load all of a model but perhaps its adapter, which adds nothing where it is missing.

    Args:
        name (`str`): Folder, or name on the Hub.
        options (*optional*): Of `from_pretrained`.

    Raises:
        FileNotFoundError: If there is no such place.
        ValueError: If it holds another kind of model, or one that is not whole.
    """
    check_place(name)
    folder = Path(name)
    if folder.is_dir() and (missing := [file for file in NEEDED if not (folder / file).is_file()]):
        if "config.json" not in missing:
            Spa3VLMConfig.from_pretrained(folder)  # refuses a model of another kind, which has no need of the rest
        raise ValueError(f"The folder `{name}` lacks {', '.join(missing)} of a Spa3-VLM; copy the checkpoint again.")
    # Parts of weights have other shapes, of which the library knows only if nothing is ignored.
    options["ignore_mismatched_sizes"] = not is_deepspeed_zero3_enabled()
    model, info = Spa3VLMForConditionalGeneration.from_pretrained(name, output_loading_info=True, **options)
    wrong = [key for key in sorted(info["missing_keys"]) if not key.startswith("model.fusion.")]
    wrong += [key for key, *_ in info["mismatched_keys"]]
    if wrong:
        raise ValueError(
            f"The weights in `{name}` do not fit its config.json: {len(wrong)} are missing or of another shape, such "
            f"as `{wrong[0]}`; copy the checkpoint again."
        )
    return model
