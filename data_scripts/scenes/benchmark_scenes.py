"""Write the list of scenes that benchmarks ask about, which pre-training must leave out.

    spa3r benchmark-scenes --output data/benchmark_scenes.txt
    spa3r benchmark-scenes --files test.jsonl ViewSpatial-Bench.json --output data/benchmark_scenes.txt

Without --files, the test sets of VSI-Bench and ViewSpatial-Bench are fetched from the Hub. `spa3r pretrain --exclude`
and `spa3r convert-data SET --exclude` take the list.
"""

from collections.abc import Sequence
from pathlib import Path

from ..common.command_line import verb_parser
from ..common.exclusions import BENCHMARKS, fetch_benchmark_scenes, read_excluded
from ..common.files import write_text


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `spa3r benchmark-scenes`."""
    parser = verb_parser("benchmark-scenes", __doc__)
    parser.add_argument("--files", nargs="+", metavar="FILE", help="benchmarks' own files, or lists of scenes")
    parser.add_argument("--output", required=True, type=Path, help="text file to write, one id a line")
    options = parser.parse_args(arguments)
    scenes = read_excluded(options.files) if options.files else fetch_benchmark_scenes()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.output, "".join(f"{scene}\n" for scene in sorted(scenes)))
    sources = options.files or BENCHMARKS
    print(f"{options.output} lists {len(scenes)} scenes of {', '.join(sources)}.")
