"""What the weights of a Spa3-VLM take while its language model is quantised: measured bytes, printed as Markdown.

    python tests/benchmarks/quantised_memory.py --preset spa3-vlm-4b

A linear layer of each shape that the language model has is made at full size with random weights and quantised, and
the bytes of all its tensors are added up, times the number of such layers. All else is counted on the meta device, in
bfloat16. Needs the extra `quantization`.
"""

import argparse
from collections import Counter

import bitsandbytes
import torch
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from spa3r import Spa3VLMForConditionalGeneration
from spa3r.configuration import Spa3VLMConfig, load_preset

LANGUAGE_MODEL = "model.vlm.language_model.layers."


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """The tensors that one of torchao is made of, scales among them."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [plain for name in names for plain in plain_tensors(getattr(tensor, name))]


def torchao_8_bits(layer: nn.Linear) -> int:
    quantize_(layer, Int8WeightOnlyConfig())
    return sum(tensor.nbytes for tensor in plain_tensors(layer.weight.data))


def bytes_on_cpu(quantised: nn.Module, layer: nn.Linear) -> int:
    """Bytes of a layer of bitsandbytes with the weights of another one; it quantises them when it is moved."""
    quantised.load_state_dict(layer.state_dict(), strict=False)
    return sum(tensor.nbytes for tensor in quantised.to("cpu").state_dict().values() if isinstance(tensor, Tensor))


def bitsandbytes_8_bits(layer: nn.Linear) -> int:
    sizes = layer.in_features, layer.out_features
    return bytes_on_cpu(bitsandbytes.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False), layer)


def bitsandbytes_4_bits(layer: nn.Linear) -> int:
    sizes = layer.in_features, layer.out_features
    return bytes_on_cpu(bitsandbytes.nn.Linear4bit(*sizes, bias=False, quant_type="nf4"), layer)


QUANTISERS = {
    "bfloat16": lambda layer: layer.weight.nbytes,
    "8 bits, torchao": torchao_8_bits,
    "8 bits, bitsandbytes": bitsandbytes_8_bits,
    "4 bits, bitsandbytes": bitsandbytes_4_bits,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="spa3-vlm-4b")
    preset = parser.parse_args().preset
    with torch.device("meta"):
        model = Spa3VLMForConditionalGeneration(Spa3VLMConfig(**load_preset(preset))).to(torch.bfloat16)
    layers = [
        module
        for name, module in model.named_modules()
        if name.startswith(LANGUAGE_MODEL) and isinstance(module, nn.Linear)
    ]
    num_weights = sum(weight.numel() for weight in model.parameters())  # the head, if it is the embedding, once
    rest = 2 * (num_weights - sum(layer.weight.numel() for layer in layers))
    shapes = Counter((layer.in_features, layer.out_features) for layer in layers)
    print(f"| {preset}, GB | Linear layers of the language model | All else | Sum |\n|---|---:|---:|---:|")
    for name, measure in QUANTISERS.items():
        taken = sum(
            number * measure(nn.Linear(*shape, bias=False, dtype=torch.bfloat16)) for shape, number in shapes.items()
        )
        print(f"| {name} | {taken / 1e9:.2f} | {rest / 1e9:.2f} | {(taken + rest) / 1e9:.2f} |")


if __name__ == "__main__":
    main()
