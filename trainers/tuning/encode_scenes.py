"""Encode each scene of instruction sets once, and train from the stored latents.

    accelerate launch -m spa3r encode-scenes --model checkpoints/spa3-vlm-4b \\
        --instructions data/vsi590k --output data/vsi590k-latents
    spa3r sft ... --scene_latents data/vsi590k-latents

With --vision-features, features of the frozen vision tower are stored as well, and training neither runs an encoder
nor reads an image. That takes far more room: 8 MB for a scene of 8 images with the 4b in bfloat16, against 0.4 MB of
latents. A model with `fusion: none` has these features alone; those of a model with latents and the same vision tower
serve it, too.

Scenes are shared out over the processes. Small scenes keep an accelerator busy only several at a time, read by workers
of their own: --scenes-per-batch, --workers. The same command, run again, encodes the missing scenes. A fingerprint
records the weights, their type and the image sizes that made the latents; training refuses latents of another model.
"""

import argparse
from collections.abc import Sequence

from ...data_scripts.common.command_line import verb_parser
from ...data_scripts.common.locks import only_run_in


def main(arguments: Sequence[str] | None = None):
    """Run `spa3r encode-scenes`."""
    parser = verb_parser("encode-scenes", __doc__)
    parser.add_argument("--model", required=True, help="folder or Hub name of a Spa3-VLM")
    parser.add_argument("--instructions", required=True, nargs="+", metavar="FOLDER", help="instruction sets")
    parser.add_argument("--output", required=True, help="folder for the latents")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's")
    parser.add_argument("--vision-features", action="store_true", help="also store features of the vision tower")
    parser.add_argument("--scenes-per-batch", type=int, default=1, help="encoded at once (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (default: %(default)s)")
    parser.add_argument("--compile-blocks", action="store_true", help="compile VGGT and encoder: faster on a GPU")
    options = parser.parse_args(arguments)
    _run(options)


def _run(options: argparse.Namespace):
    # Here, so that --help does not wait for them.
    from ...modeling_spa3r.checkpoints.loading import load_processor, load_spa3_vlm
    from ...modeling_spa3r.compilation import compile_blocks
    from ..runs.distributed import join_processes
    from .instruction_data import load_instructions
    from .scene_cache import encode_scenes

    state = join_processes()
    model = load_spa3_vlm(options.model, dtype=options.dtype or "auto")
    model.to(state.device).eval()
    if options.compile_blocks:
        compile_blocks(model)
    processor = load_processor(options.model)
    with state.main_process_first():
        dataset = load_instructions(options.instructions, seed=0)
    with only_run_in(options.output, state.is_main_process):
        encode_scenes(
            *(model, processor, dataset, options.output, options.vision_features),
            scenes_per_batch=options.scenes_per_batch,
            num_workers=options.workers,
        )
