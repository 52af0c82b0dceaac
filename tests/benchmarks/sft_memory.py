"""What instruction tuning needs of each GPU's memory, by topology: a calculation, printed as Markdown.

    python tests/benchmarks/sft_memory.py --preset spa3-vlm-4b

Parameters are counted on the model itself, on the meta device. F and W are the bytes of frozen and of trained weights,
which are bfloat16 as in the recipes, T is the number of trained ones, N the GPUs. Each GPU holds

| topology    | weights     | gradients | AdamW   | master copy | beside activations    | in a step |
|-------------|-------------|-----------|---------|-------------|-----------------------|-----------|
| 1 GPU, LoRA | F + W       | W         | 2 W     |             |                       |           |
| 1 GPU       | F + W       | W         | 2 W     |             |                       |           |
| DDP         | F + W       | W         | 2 W     |             | W                     |           |
| ZeRO-2      | F + W       | W / N     | 8 T / N | 4 T / N     | 2 buckets             | 4 T / N   |
| ZeRO-3      | (F + W) / N | W / N     | 8 T / N | 4 T / N     | a bucket, live layers | 4 T / N   |
| FSDP2       | F / N       | W         | 8 T / N | 4 T / N     | gathered layers       |           |

- One GPU and DDP: AdamW's two states are bfloat16 as the weights are, and there is no master copy. LoRA's layers and
  the adapter are float32, and the adapter is there twice, as PEFT keeps the original. DDP's buckets are a copy of all
  gradients.
- DeepSpeed's buckets hold 5e8 numbers, its live layers up to 1e9; in its step gradients become float32.
- FSDP2's weights are the master copy, and two layers and all that is in none are gathered in bfloat16. Gradients are
  whole while records are accumulated, and after the last one 4 T / N.

Activations of one record: the inputs of all layers, 2 bytes x tokens x hidden size each; in the adapter 21 bytes x
image tokens x hidden size; and the larger of one layer, made again for its backward pass (28 bytes x tokens x hidden
size and 12 bytes x tokens x intermediate size; with LoRA 66 and 22), and of the head's gradient, which TRL sums in
float32 and casts (6 bytes x vocabulary x hidden size; none with LoRA). The factors were measured on layers in small.

Not counted: the forward pass of the frozen encoders, which is over before and needs less, also where the spatial
encoder is gathered for it (1.9 GB); the inputs; the logits,
which are of the answer's few tokens; what CUDA, NCCL and the allocator take, a gigabyte or two. What is held
throughout, and a layer, are compared with the tensors of small runs by `tests/test_sft_memory.py`.
"""

import argparse
from dataclasses import dataclass

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from trl import get_peft_config

from spa3r import Spa3VLMForConditionalGeneration
from spa3r.configuration import Spa3VLMConfig, load_preset
from spa3r.modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3RSceneEncoder, VGGTSceneEncoder
from spa3r.trainers.runs.recipes import RECIPES
from spa3r.trainers.tuning.sft import parse_arguments

ENCODERS = (Spa3RSceneEncoder, VGGTSceneEncoder)
# Elements; DeepSpeed's defaults, which our files leave as they are.
REDUCE_BUCKET, LIVE_WEIGHTS = 500_000_000, 1_000_000_000
# Bytes of a number.
BFLOAT16 = 2
# Of a view of 518 x 392 pixels, and of a question with its answer and the chat's own.
VIEW_TOKENS, TEXT_TOKENS = 252, 100


@dataclass(frozen=True)
class Sizes:
    """What of a model decides how much memory its training needs.

    Args:
        frozen, trained (`int`): Bytes of weights.
        num_frozen, num_trained (`int`): Numbers of weights.
        num_gathered (`int`): Weights that FSDP2 holds whole at once: those outside of layers, and two layers.
    """

    frozen: int
    trained: int
    num_frozen: int
    num_trained: int
    num_gathered: int


@dataclass(frozen=True)
class Need:
    """Bytes of each GPU; those beside a backward pass and those in a step are not needed at one time."""

    weights: float
    gradients: float
    states: float
    master: float = 0
    backward: float = 0
    step: float = 0

    @property
    def always(self) -> float:
        return self.weights + self.gradients + self.states + self.master

    def peak(self, activations: float) -> float:
        return self.always + max(self.backward + activations, self.step)


def plain(sizes: Sizes, num_gpus: int) -> Need:
    return Need(sizes.frozen + sizes.trained, sizes.trained, 2 * sizes.trained)


def ddp(sizes: Sizes, num_gpus: int) -> Need:
    return Need(sizes.frozen + sizes.trained, sizes.trained, 2 * sizes.trained, backward=sizes.trained)


def zero2(sizes: Sizes, num_gpus: int) -> Need:
    share = sizes.num_trained / num_gpus
    buckets = 2 * REDUCE_BUCKET * BFLOAT16
    weights, gradients = sizes.frozen + sizes.trained, sizes.trained / num_gpus
    return Need(weights, gradients, 8 * share, 4 * share, backward=buckets, step=4 * share)


def zero3(sizes: Sizes, num_gpus: int) -> Need:
    share = sizes.num_trained / num_gpus
    held = (REDUCE_BUCKET + min(LIVE_WEIGHTS, sizes.num_frozen + sizes.num_trained)) * BFLOAT16
    weights, gradients = (sizes.frozen + sizes.trained) / num_gpus, sizes.trained / num_gpus
    return Need(weights, gradients, 8 * share, 4 * share, backward=held, step=4 * share)


def fsdp2(sizes: Sizes, num_gpus: int) -> Need:
    share = sizes.num_trained / num_gpus
    gradients, gathered = max(sizes.num_trained * BFLOAT16, 4 * share), sizes.num_gathered * BFLOAT16
    return Need(sizes.frozen / num_gpus, gradients, 8 * share, 4 * share, backward=gathered)


SHARED = {"DDP": ddp, "ZeRO-2": zero2, "ZeRO-3": zero3, "FSDP2": fsdp2}


def build_model(preset: str) -> Spa3VLMForConditionalGeneration:
    """As the recipes train it, on the meta device."""
    with torch.device("meta"):
        model = Spa3VLMForConditionalGeneration(Spa3VLMConfig(**load_preset(preset)))
    model.to(torch.bfloat16).freeze_encoders()
    return model


def add_lora(model: Spa3VLMForConditionalGeneration) -> PeftModel:
    """As the recipe `spa3-vlm-lora` trains it, with the adapter in float32."""
    model.model.fusion.float()
    options = ["--config", str(RECIPES / "spa3-vlm-lora.yaml"), "--bf16", "false", "--use_cpu", "true"]
    return get_peft_model(model, get_peft_config(parse_arguments(options)[-1]))


def num_weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def find_layers(module: nn.Module, names: set[str]) -> list[nn.Module]:
    """Modules of these classes, but for those within another one."""
    if type(module).__name__ in names:
        return [module]
    return [layer for child in module.children() for layer in find_layers(child, names)]


def measure(model: Spa3VLMForConditionalGeneration | PeftModel) -> Sizes:
    """Sizes of a model whose gradients are on where it is trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    layers = find_layers(model, set(model._no_split_modules))
    # The spatial encoder is gathered as one, but released again before the language model begins.
    lasting = sorted((num_weights(layer) for layer in layers if type(layer) not in ENCODERS), reverse=True)
    return Sizes(
        frozen=sum(parameter.nbytes for parameter in frozen),
        trained=sum(parameter.nbytes for parameter in trained),
        num_frozen=sum(parameter.numel() for parameter in frozen),
        num_trained=sum(parameter.numel() for parameter in trained),
        num_gathered=num_weights(model) - sum(map(num_weights, layers)) + sum(lasting[:2]),
    )


def activations(config: Spa3VLMConfig, num_views: int, lora: bool) -> int:
    """Bytes that one record needs at the height of its backward pass."""
    text = config.get_text_config()
    image_tokens = num_views * VIEW_TOKENS
    tokens = image_tokens + TEXT_TOKENS
    inputs = 2 * tokens * text.hidden_size * text.num_hidden_layers
    adapter = 21 * image_tokens * text.hidden_size
    of_hidden, of_intermediate = (66, 22) if lora else (28, 12)
    layer = tokens * (of_hidden * text.hidden_size + of_intermediate * text.intermediate_size)
    head = 0 if lora else 6 * text.vocab_size * text.hidden_size
    return inputs + adapter + max(layer, head)


def print_parts(model: Spa3VLMForConditionalGeneration):
    """Number of weights of each part."""
    base = model.model
    head = 0 if model.config.tie_word_embeddings else num_weights(model.lm_head)
    embeddings = num_weights(base.language_model.embed_tokens)
    parts = {
        "spatial encoder, frozen": num_weights(base.spatial_encoder),
        "vision tower, frozen": num_weights(base.vlm.visual),
        "adapter": num_weights(base.fusion),
        "embeddings" if head else "embeddings, which are the head too": embeddings,
        "layers of the language model": num_weights(base.language_model) - embeddings,
    }
    parts |= {"head": head} if head else {}
    if sum(parts.values()) != num_weights(model):
        raise RuntimeError(f"The parts have {sum(parts.values())} weights, but the model {num_weights(model)}.")
    print("| part | weights |\n|---|---:|")
    for name, number in (parts | {"all": num_weights(model)}).items():
        print(f"| {name} | {number:,} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="spa3-vlm-4b", help="architecture")
    parser.add_argument("--gpus", type=int, default=8, help="that share the work")
    parser.add_argument("--views", type=int, default=8, help="images of a record")
    options = parser.parse_args()
    model = build_model(options.preset)
    print_parts(model)
    sizes, of_record = measure(model), activations(model.config, options.views, lora=False)
    rows = [("1 GPU", plain(sizes, 1), of_record)]
    rows += [(f"{options.gpus} GPUs, {name}", need(sizes, options.gpus), of_record) for name, need in SHARED.items()]
    # PEFT changes the model.
    sizes, of_record = measure(add_lora(model)), activations(model.config, options.views, lora=True)
    rows.insert(0, ("1 GPU, LoRA", plain(sizes, 1), of_record))
    print(f"\nGB of each GPU, a record of {options.views} images at a time:\n")
    print("| | weights | gradients | AdamW | master copy | activations | beside them | in a step | most at once |")
    print("|---|" + "---:|" * 8)
    for name, need, of_record in rows:
        numbers = (need.weights, need.gradients, need.states, need.master, of_record, need.backward, need.step)
        cells = [f"{number / 1e9:.1f}" if number else "" for number in (*numbers, need.peak(of_record))]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\nMost at once: the first four, and the larger of a step and of activations with what is beside them.")


if __name__ == "__main__":
    main()
