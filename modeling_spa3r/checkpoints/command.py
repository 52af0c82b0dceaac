"""Import published checkpoints, or assemble a Spa3-VLM.

    spa3r convert vggt VGGT-1B/model.safetensors checkpoints/vggt-1b
    spa3r convert spa3r spa3r.ckpt checkpoints/spa3r --dtype bfloat16
    spa3r convert dinov3 dinov3_vitl16_pretrain_lvd1689m.pth checkpoints/dinov3-vitl16
    spa3r convert spa3-vlm official-spa3-vlm checkpoints/spa3-vlm-4b
    spa3r convert assemble checkpoints/spa3-vlm-4b --vlm Qwen/Qwen2.5-VL-3B-Instruct --spa3r checkpoints/spa3r
    spa3r convert assemble runs/spa3-vlm --vlm spa3-vlm-tiny --spa3r runs/quickstart/model --image-width 112

Each command writes a folder that `from_pretrained` loads.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ...data_scripts.common.files import require_empty_folder

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None):
    """Run `spa3r convert`."""
    options = _parser().parse_args(arguments)
    require_empty_folder(options.output)
    from .conversion import run  # here, so that --help does not wait for it

    run(options)


def _parser() -> argparse.ArgumentParser:
    source, result, width = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    source.add_argument("input", type=Path, metavar="INPUT", help="file, or folder of .safetensors files")
    source.add_argument("--config", type=Path, metavar="FILE", help="JSON of sizes that shapes do not determine")
    result.add_argument("output", type=Path, metavar="OUTPUT", help="new or empty folder for the result")
    dtypes = ["float32", "bfloat16", "float16"]
    result.add_argument("--dtype", choices=dtypes, help="dtype of the weights (default: unchanged)")
    help = "width in pixels that Spa3R was trained with (default: 518)"
    width.add_argument("--image-width", type=int, default=518, metavar="PIXELS", help=help)

    parser = argparse.ArgumentParser(
        prog="spa3r convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, text, parents in [
        ("vggt", "import VGGT as facebook/VGGT-1B", [source, result]),
        ("spa3r", "import the official Spa3R, teachers included", [source, result]),
        ("dinov3", "import DINOv3 as Meta publishes it", [source, result]),
        ("spa3-vlm", "import the official Spa3-VLM from its folder", [source, result, width]),
        ("assemble", "join a Qwen2.5-VL or Qwen3-VL and a Spa3R with a new adapter", [result, width]),
    ]:
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=parents)
    help = "Qwen2.5-VL, Qwen3-VL, or a Spa3-VLM with one: folder, name on the Hub, or untrained by a preset"
    command.add_argument("--vlm", required=True, help=help)
    command.add_argument("--spa3r", help="Spa3R of this package: folder or name on the Hub; --fusion none needs none")
    fusions = {"choices": ["cross_attention", "append", "none"], "default": "cross_attention"}
    command.add_argument("--fusion", **fusions, help="how the scene enters the model (default: cross_attention)")
    representations = {"choices": ["spa3r", "vggt"], "default": "spa3r"}
    command.add_argument("--spatial-representation", **representations, help="of the scene (default: spa3r)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of untrained weights (default: 0)")
    return parser
