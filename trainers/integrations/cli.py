"""The terminal interface: `spa3r VERB`."""

import sys
from collections.abc import Sequence
from importlib import import_module

from ..runs.distributed import leave_process_group
from ..runs.errors import errors_as_sentences, take_debug

# Verb: module with a `main(arguments)`, relative to the package, and what it does.
VERBS = {
    "ask": ("trainers.integrations.ask", "ask about a scene: photos or a video in, answers out"),
    "serve": ("trainers.integrations.server.command", "answer many clients over OpenAI's chat API"),
    "demo": ("trainers.integrations.demo.command", "open a page: ask, see cameras and points, look from elsewhere"),
    "export": (
        "trainers.integrations.export",
        "write a scene's cameras, depth and points as GLB, PLY, COLMAP and npz",
    ),
    "teach": ("trainers.teaching.teach", "train the teachers of Spa3R on scenes with known depth and categories"),
    "pretrain": ("trainers.pretraining.pretrain", "pre-train Spa3R on scenes"),
    "inspect": ("trainers.pretraining.inspect", "show what a Spa3R checkpoint has learnt"),
    "align": ("trainers.alignment.align", "align Spa3-VLM's adapter with points in space, before tuning"),
    "sft": ("trainers.tuning.sft", "instruction-tune Spa3-VLM"),
    "grpo": ("trainers.tuning.grpo", "train Spa3-VLM by rewards of its own answers"),
    "encode-scenes": ("trainers.tuning.scene_cache", "encode each scene of instruction sets once"),
    "benchmark": ("trainers.benchmark.benchmark", "score a model on a benchmark, or compare two runs"),
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
NOT_BEGUN = "training has not begun; the same command starts it"
KEPT = dict.fromkeys(VERBS, "what is complete is kept; the same command goes on from there") | {
    **dict.fromkeys(("ask", "serve", "demo"), ""),
    **dict.fromkeys(("inspect", "convert", "benchmark-scenes", "export"), NOTHING_KEPT),
    **dict.fromkeys(("pretrain", "sft", "grpo", "align", "teach"), NOT_BEGUN),
}


def main(arguments: Sequence[str] | None = None):
    """Run the verb that the first argument names; an error ends the process with one sentence.

    With `--debug` its traceback is shown, too.
    """
    arguments, debug = take_debug(sys.argv[1:] if arguments is None else arguments)
    verb = arguments[0] if arguments else "--help"
    if verb in ("--help", "-h"):
        print(_help())
    elif verb in VERBS:
        module, _ = VERBS[verb]
        with errors_as_sentences(f"spa3r {verb}", arguments, debug, KEPT[verb]):
            import_module(f"spa3r.{module}").main(arguments[1:])
            leave_process_group()
    else:
        sys.exit(f"spa3r: there is no verb `{verb}`; choose one of {', '.join(VERBS)}.")


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    usage = (
        "usage: spa3r VERB [OPTIONS]; `spa3r VERB --help` describes one, `--debug` shows the traceback of an error."
    )
    return "\n".join([usage, "", *lines])
