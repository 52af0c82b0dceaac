"""Ask questions about photos or a video of a place.

    spa3r ask --model checkpoints/spa3-vlm-4b --images room/*.jpg --question "How many chairs are in the room?"
    spa3r ask --model checkpoints/spa3-vlm-4b --video room.mp4 --frames 16

The scene is encoded once for all questions. Without --question, questions are read from the terminal, one per line.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...data_scripts.common.command_line import verb_parser

PROMPT = "? "


def main(arguments: Sequence[str] | None = None):
    """Run `spa3r ask`."""
    parser = verb_parser("ask", __doc__)
    parser.add_argument("--model", required=True, help="folder or Hub name of a Spa3-VLM")
    scene = parser.add_mutually_exclusive_group(required=True)
    scene.add_argument("--images", nargs="+", metavar="IMAGE", help="photos of one place, the reference first")
    scene.add_argument("--video", help="a video of the place")
    parser.add_argument("--frames", type=int, help="evenly spread frames of the video (default: 32)")
    parser.add_argument(
        "--question", action="append", dest="questions", metavar="QUESTION", help="question; may be repeated"
    )
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer in tokens (default: 128)")
    parser.add_argument("--device", help="such as cpu (default: an accelerator)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's")
    options = parser.parse_args(arguments)
    if options.frames is not None and options.images:
        parser.error("--frames is for --video; all --images are used")
    if any(not question.strip() for question in options.questions or ()):
        parser.error("--question is empty: ask something, or leave it out to be asked for questions")
    for name, number in (("--frames", options.frames), ("--max-new-tokens", options.max_new_tokens)):
        if number is not None and number < 1:
            parser.error(f"{name} must be at least 1, got {number}")
    _run(options)


def _run(options: argparse.Namespace):
    # Here, so that --help does not wait for them.
    from transformers import TextStreamer
    from transformers.utils import logging

    from ...modeling_spa3r.checkpoints.loading import load_processor, load_spa3_vlm, require_checkpoint
    from ...modeling_spa3r.spa3_vlm.scene_session import SceneSession
    from ..runs.devices import usable_device

    logging.disable_progress_bar()
    device = usable_device(options.device)
    start = time.perf_counter()
    require_checkpoint(options.model)
    if not Path(options.model).is_dir():
        _report(f"Loading `{options.model}` from the Hub: there is no such folder.")
    model = load_spa3_vlm(options.model, dtype=options.dtype or "auto")
    model.to(device).eval()
    processor = load_processor(options.model)
    _report(f"Loaded {options.model} on {model.device} in {time.perf_counter() - start:.1f} s.")
    start = time.perf_counter()
    session = SceneSession(model, processor, options.images, options.video, options.frames)
    views = "1 view" if session.num_images == 1 else f"{session.num_images} views"
    _report(f"Encoded {views} in {time.perf_counter() - start:.1f} s.")
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    for question in options.questions or _read_questions():
        if options.questions:
            _report(f"{PROMPT}{question}")
        start = time.perf_counter()
        try:
            session.generate([question], max_new_tokens=options.max_new_tokens, streamer=streamer)
        except ValueError as error:
            if options.questions:
                raise
            # At the terminal the next question follows; the scene stays encoded.
            _report(str(error))
            continue
        _report(f"Answered in {time.perf_counter() - start:.1f} s.")


def _read_questions() -> Iterator[str]:
    """Read questions from the terminal until the input ends."""
    if sys.stdin.isatty():
        _report("Ask one question per line; an empty line or Ctrl-D ends.")
    while True:
        try:
            if sys.stdin.isatty():
                print(PROMPT, end="", file=sys.stderr, flush=True)
            question = input().strip()
        except EOFError:
            return
        if not question:
            return
        yield question


def _report(message: str):
    """Print to the standard error; the standard output is for answers alone."""
    print(message, file=sys.stderr, flush=True)
