"""The terminal interface: `spa3r VERB`."""

import sys
from collections.abc import Sequence
from importlib import import_module

from ...data_scripts.common.command_line import DEBUG, VERBOSE, is_asked_for_help

# Verb: module with a `main(arguments)`, relative to the package, and what it does. The modules import what does the
# work, which takes seconds, only after they have read the command line.
VERBS = {
    "ask": ("trainers.integrations.ask", "ask about a scene: photos or a video in, answers out"),
    "serve": ("trainers.integrations.server.command", "answer many clients over OpenAI's chat API"),
    "demo": ("trainers.integrations.demo.command", "open a page: ask, see cameras and points, look from elsewhere"),
    "export": (
        "trainers.integrations.export_command",
        "write a scene's cameras, depth and points as GLB, PLY, COLMAP and npz",
    ),
    "teach": ("trainers.teaching.command", "train the teachers of Spa3R on scenes with known depth and categories"),
    "pretrain": ("trainers.pretraining.command", "pre-train Spa3R on scenes"),
    "inspect": ("trainers.pretraining.inspect_command", "show what a Spa3R checkpoint has learnt"),
    "align": ("trainers.alignment.command", "align Spa3-VLM's adapter with points in space, before tuning"),
    "sft": ("trainers.tuning.command", "instruction-tune Spa3-VLM"),
    "grpo": ("trainers.tuning.grpo_command", "train Spa3-VLM by rewards of its own answers"),
    "encode-scenes": ("trainers.tuning.encode_scenes", "encode each scene of instruction sets once"),
    "benchmark": ("trainers.benchmark.command", "score a model on a benchmark, or compare two runs"),
    "convert": ("modeling_spa3r.checkpoints.command", "import published checkpoints, or assemble a Spa3-VLM"),
    "scenes": ("data_scripts.scenes.export_scannet", "export raw recordings of ScanNet for pre-training"),
    "convert-data": ("data_scripts.instructions.command", "make an instruction set from a published data set"),
    "benchmark-scenes": ("data_scripts.scenes.benchmark_scenes", "list the scenes that pre-training must leave out"),
    "rooms": ("data_scripts.rooms.generate", "render furnished rooms with cameras, depth and objects"),
    "world": ("trainers.world.world", "make the nano world from nothing: rooms, teachers, models, scores"),
    "room-questions": ("data_scripts.rooms.write_questions", "write questions about rendered rooms"),
}
# What Ctrl-C leaves of the output. The verbs that train say it themselves once they train.
NOTHING_KEPT = "nothing was written; the same command starts again"
LAST_CHECKPOINT = "the same command goes on from the last checkpoint, or starts again where there is none"
KEPT = dict.fromkeys(VERBS, "what is complete is kept; the same command goes on from there") | {
    **dict.fromkeys(("ask", "serve", "demo"), ""),
    **dict.fromkeys(("inspect", "convert", "benchmark-scenes", "export"), NOTHING_KEPT),
    **dict.fromkeys(("pretrain", "sft", "grpo", "align", "teach"), LAST_CHECKPOINT),
}


def main(arguments: Sequence[str] | None = None):
    """Run the verb that the first argument names; an error ends the process with one sentence.

    With `--debug` its traceback is shown, too.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    verb = next((word for word in arguments if word not in (DEBUG, VERBOSE)), "--help")
    if verb in ("--help", "-h"):
        print(_help())
    elif verb in VERBS and is_asked_for_help(arguments):
        import_module(f"spa3r.{VERBS[verb][0]}").main(arguments[1:])
    elif verb in VERBS:
        _run(verb, arguments)
    else:
        sys.exit(f"spa3r: there is no verb `{verb}`; choose one of {', '.join(VERBS)}.")


def _run(verb: str, arguments: Sequence[str]):
    # Here, so that --help does not wait for them.
    from transformers.utils import logging

    from ..runs.distributed import leave_process_group
    from ..runs.errors import errors_as_sentences, take_debug

    arguments, debug = take_debug(arguments)
    if VERBOSE in arguments:
        arguments.remove(VERBOSE)
        logging.set_verbosity_info()
    with errors_as_sentences(f"spa3r {verb}", arguments, debug, KEPT[verb]):
        import_module(f"spa3r.{VERBS[verb][0]}").main(arguments[1:])
        leave_process_group()


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    usage = (
        "usage: spa3r VERB [OPTIONS]; `spa3r VERB --help` describes one, `--debug` shows the traceback of an error, "
        "`--verbose` what the libraries log."
    )
    return "\n".join([usage, "", *lines])
