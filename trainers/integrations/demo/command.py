"""Open a page that shows what the latent of a scene knows.

    spa3r demo
    spa3r demo --model checkpoints/spa3-vlm-4b --spa3r checkpoints/spa3r

Choose a rendered room, or drop photos or a video of a place. Ask questions, and see which parts of the photos and
which latents an answer looked at. See the cameras and points that VGGT estimates. Move a camera, and see what
Spa3R's decoder predicts there from the latents alone, in rendered rooms beside the truth.

Without --model, the nano models that ship with the package are used: they know rendered rooms, not photos. A Spa3-VLM
holds no decoder, so another --model needs the --spa3r that it was assembled from for all but questions.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ....data_scripts.common.command_line import verb_parser
from ..server.command import bind_address
from .limits import Limits

if TYPE_CHECKING:
    from .scenes import Studio

DEFAULTS = Limits()


def main(arguments: Sequence[str] | None = None):
    """Run `spa3r demo`."""
    options = parse_arguments(arguments)
    require_gradio()
    # Before anything slow: Gradio speaks of its own options when it cannot listen.
    bind_address(options.host or "127.0.0.1", options.port or 0).close()
    from .page import Page, launch  # here, as all else that takes seconds, so that --help does not wait for it
    from .rooms import make_rooms

    with tempfile.TemporaryDirectory(prefix="spa3r-rooms-") as folder:
        shown = Page(load_studio(options), make_rooms(Path(folder)), describe(options))
        blocks = launch(
            shown,
            queue_size=options.queue_size,
            server_name=options.host,
            server_port=options.port,
            share=options.share,
            max_file_size=f"{options.max_megabytes}mb",
        )
        blocks.block_thread()


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Define and read the command line."""
    parser = verb_parser("demo", __doc__)
    add = parser.add_argument
    add("--model", metavar="DIR", help="Spa3-VLM: a folder or Hub name (default: the shipped nano model)")
    add(
        "--spa3r", metavar="DIR", help="Spa3R inside that model, with its decoder (default: none, or the nano model's)"
    )
    add("--port", type=int, help="port of the page (default: 7860, or the next free one)")
    add("--host", help="address to listen on (default: 127.0.0.1, this machine alone)")
    add("--share", action="store_true", help="also give the page a public address for a week, by Gradio's relay")
    add("--queue-size", type=int, default=32, help="requests that may wait; more are refused (default: %(default)s)")
    add("--max-photos", type=int, default=DEFAULTS.photos, help="photos of an upload (default: %(default)s)")
    add("--max-megapixels", type=float, default=DEFAULTS.megapixels, help="of each picture (default: %(default)s)")
    add("--max-seconds", type=float, default=DEFAULTS.seconds, help="of a video (default: %(default)s)")
    add("--max-megabytes", type=int, default=200, help="of each file (default: %(default)s)")
    add("--max-new-tokens", type=int, default=DEFAULTS.new_tokens, help="longest answer (default: %(default)s)")
    add("--device", help="such as cpu (default: an accelerator)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's")
    options = parser.parse_args(arguments)
    for name in ("queue_size", "max_photos", "max_megapixels", "max_seconds", "max_megabytes", "max_new_tokens"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be more than 0, got {getattr(options, name)}")
    if options.port is not None and not 0 < options.port < 2**16:
        parser.error(f"--port must be from 1 to 65535, got {options.port}")
    if options.spa3r and not options.model:
        parser.error("--spa3r is for another --model; the shipped nano model has its own")
    return options


def require_gradio():
    """Raise an `ImportError` that says how to install Gradio if it is missing."""
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError("The page needs Gradio: `pip install gradio`, or the extra `demo` of spa3r.") from error


def load_studio(options: argparse.Namespace) -> "Studio":
    """Load the models that the options name."""
    from transformers.utils import logging

    from ....modeling_spa3r.checkpoints.loading import load_processor, load_spa3_vlm, load_whole
    from ....modeling_spa3r.nano import nano_path
    from ....modeling_spa3r.spa3r.modeling_spa3r import Spa3RForPreTraining
    from ...runs.devices import usable_device
    from .scenes import Studio, require_same_encoder

    logging.disable_progress_bar()
    device, dtype = usable_device(options.device), options.dtype or "auto"
    name, spa3r_name = options.model, options.spa3r
    if name is None:
        name, spa3r_name = nano_path("spa3-vlm-nano"), nano_path("spa3r-nano")
    model = load_spa3_vlm(name, dtype=dtype).to(device).eval()
    spa3r = None
    if spa3r_name is not None:
        spa3r = load_whole(Spa3RForPreTraining, spa3r_name, dtype=dtype).to(device).eval()
        require_same_encoder(model, spa3r, (name, spa3r_name))
    limits = Limits(
        photos=options.max_photos,
        megapixels=options.max_megapixels,
        seconds=options.max_seconds,
        new_tokens=options.max_new_tokens,
    )
    return Studio(model, load_processor(name), spa3r, limits)


def describe(options: argparse.Namespace) -> str:
    """What the visitor of the page must know about its models."""
    if options.model is not None:
        return f"Model: `{options.model}`. The photos are encoded once; every answer comes from the same latents."
    return (
        "Two tiny models that ship with the package, trained from nothing on pictures of 112 x 84 pixels of rendered "
        "rooms. They know how rooms are built and how large they are, hardly where single things are, and nothing of "
        "real photos; they understand questions in the words of their training alone, such as those below. The photos "
        "are encoded once; all else on this page comes from those latents."
    )
