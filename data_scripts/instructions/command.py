"""The command `spa3r convert-data SET`: convert a published data set to an instruction set."""

import argparse
import os
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

from ..common.command_line import OneLineHelp
from ..common.exclusions import BENCHMARKS, fetch_benchmark_scenes, read_excluded, summarize_exclusion
from ..instructions import llava_hound, spar, vlm3r, vsi590k

SETS = {"vsi590k": vsi590k, "spar": spar, "llava-hound": llava_hound, "vlm3r": vlm3r}


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert the data set that the first argument names."""
    options = _parse(arguments)
    from .convert import convert  # here, so that --help does not wait for it

    try:
        manifest = convert(
            SETS[options.set].read_record,
            options.set.replace("-", "_"),
            options.input,
            options.media_root,
            options.output,
            _read_exclusions(options),
            options.workers,
            options.max_records,
            exclude_may_match_nothing=options.exclude_may_match_nothing or not options.exclude,
        )
    except BrokenProcessPool as error:
        raise OSError(
            f"A worker process ended abruptly, perhaps because memory ran out with `--workers` {options.workers}; run "
            "the command again with fewer to resume."
        ) from error
    if "num_scenes" in manifest:  # sets of older versions lack it
        found = len(manifest["excluded_by_scene"]), manifest["num_scenes"]
        listed = manifest["listed_scenes_found"], manifest["listed_scenes"]
        print(f"{summarize_exclusion(*found, *listed)}.")
    print(
        f"{manifest['kept']} of {manifest['records']} records are in {options.output}; {manifest['excluded']} are "
        f"about excluded scenes, {manifest['rejected']} are rejected (see rejected.jsonl)."
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--input", required=True, help="annotations: lines of JSON, or one JSON list")
    common.add_argument("--media-root", required=True, help="folder that the annotations' paths are relative to")
    common.add_argument("--output", required=True, help="folder of the instruction set; an interrupted run is resumed")
    exclusion = common.add_mutually_exclusive_group()
    exclusion.add_argument(
        "--exclude",
        nargs="+",
        metavar="FILE",
        help="scenes to leave out: lists of ids or paths, or the benchmarks' own files "
        f"(default: the test sets of {' and '.join(BENCHMARKS)}, downloaded from the Hub)",
    )
    exclusion.add_argument("--no-exclude", action="store_true", help="leave no scene out")
    common.add_argument(
        "--exclude-may-match-nothing", action="store_true", help="go on if --exclude leaves out no scene"
    )
    common.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    common.add_argument("--max-records", type=int, help="read only this many records")
    parser = argparse.ArgumentParser(prog="spa3r convert-data", description=__doc__.partition(": ")[2])
    subparsers = parser.add_subparsers(dest="set", metavar="SET", required=True)
    for name, module in SETS.items():
        subparsers.add_parser(
            name,
            parents=[common],
            help=module.__doc__.partition("\n")[0],
            description=module.__doc__,
            formatter_class=OneLineHelp,
        )
    return parser.parse_args(arguments)


def _read_exclusions(options: argparse.Namespace) -> frozenset[str]:
    if options.no_exclude:
        return frozenset()
    return read_excluded(options.exclude) if options.exclude else fetch_benchmark_scenes()
