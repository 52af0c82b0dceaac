"""Make the base of a small Spa3-VLM: an untrained Qwen2.5-VL with a taught vision tower and a tokenizer of its words.

    python -m spa3r.trainers.world.base_vlm --preset spa3-vlm-nano --vision runs/world/vision/model \
        --instructions runs/world/image_questions runs/world/questions --output runs/world/qwen

The folder is that of a plain Qwen2.5-VL; `spa3r convert assemble` makes a Spa3-VLM of it.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from ...configuration import load_preset
from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ...data_scripts.common.files import new_folder, require_empty_folder
from ...modeling_spa3r.checkpoints.assemble import make_processor
from ...modeling_spa3r.checkpoints.loading import load_whole
from ...modeling_spa3r.checkpoints.word_tokenizer import train_word_tokenizer
from ...modeling_spa3r.spa3_vlm.processing_spa3_vlm import CHAT_TEMPLATE
from ..runs.errors import run_module
from ..runs.initialization import initialize_for_scratch
from ..tuning.instruction_data import load_instructions

# Standard deviation of embeddings, which are tied to the head: large enough to tell words apart, and small enough that
# at first all words are about equally likely.
EMBEDDING_STD = 0.05
SYSTEM = "system\nYou are a helpful assistant."


def build_base_vlm(preset: str, vision: str | None, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """Build the Qwen2.5-VL of a preset, with a language model that knows nothing.

    Args:
        preset (`str`): Architecture of a Spa3-VLM; see `load_preset`.
        vision (`str`, *optional*): Vision tower, as `spa3r teach --teacher vision` saves it; untrained by default.
        seed (`int`, *optional*, defaults to 0): Seed of the untrained weights.

    Raises:
        ValueError: If the vision tower is not that of the preset.
    """
    config = Spa3VLMConfig(**load_preset(preset)).vlm_config
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    initialize_for_scratch(model)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING_STD)
    if vision is not None:
        taught = load_whole(Qwen2_5_VisionTransformerPretrainedModel, vision)
        require_same_architecture(taught, model.model.visual, vision, preset)
        model.model.visual.load_state_dict(taught.state_dict())
    return model


def require_same_architecture(taught, expected, vision: str, preset: str):
    """Refuse a vision tower of other sizes, or that computes something else."""
    names = taught.config.to_dict().keys() & type(expected.config).__annotations__.keys() - {"initializer_range"}
    for name in sorted(names):
        given, own = getattr(taught.config, name), getattr(expected.config, name)
        if given != own:
            raise ValueError(
                f"The vision tower in `{vision}` has `{name}` {given}, but that of `{preset}` has {own}: teach one "
                f"with `spa3r teach --teacher vision --preset {preset}`."
            )


def read_texts(instructions: Sequence[str]) -> Iterator[str]:
    """All that a model reads and writes when it is trained on instruction sets, part by part."""
    for record in load_instructions(list(instructions), seed=0).select_columns("messages"):
        yield SYSTEM
        for message in record["messages"]:
            content = message["content"]
            texts = [content] if isinstance(content, str) else [part["text"] for part in content if part["text"]]
            yield "\n".join([message["role"], *texts])


def save_base_vlm(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, output: Path):
    """Write a plain Qwen2.5-VL with its tokenizer, complete or not at all."""
    make_processor(Spa3VLMConfig(vlm_config=model.config), tokenizer)  # refuses a tokenizer with other ids
    tokenizer.chat_template = CHAT_TEMPLATE
    with new_folder(output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None):
    """Make a base VLM; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True, help="architecture of the Spa3-VLM")
    parser.add_argument("--vision", help="taught vision tower (default: untrained)")
    parser.add_argument("--instructions", nargs="+", required=True, help="instruction sets whose words become tokens")
    parser.add_argument("--output", type=Path, required=True, help="new or empty folder for the result")
    parser.add_argument("--seed", type=int, default=0, help="seed of the untrained weights (default: 0)")
    options = parser.parse_args(arguments)
    require_empty_folder(options.output)
    model = build_base_vlm(options.preset, options.vision, options.seed)
    tokenizer = train_word_tokenizer(read_texts(options.instructions), model.config.text_config.vocab_size)
    save_base_vlm(model, tokenizer, options.output)
    print(f"Wrote a Qwen2.5-VL of {model.num_parameters():,} weights and {len(tokenizer)} tokens to {options.output}.")


if __name__ == "__main__":
    run_module(main, "spa3r.trainers.world.base_vlm")
