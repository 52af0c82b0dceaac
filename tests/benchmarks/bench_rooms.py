"""Views per second of rooms rendered to disk by one core, at two image sizes.

    python tests/benchmarks/bench_rooms.py --scenes 4 --views 32

The time includes drawing the room, its shadows, rendering, and writing JPEG and PNG files. Processor time is the time
of one core, even on a machine that is busy with other work.
"""

import tempfile
import time
from pathlib import Path

from measuring import make_parser, print_table, write_figures

from spa3r.data_scripts.rooms.generate import render_rooms

SIZES = ((224, 168), (518, 392))


def measure(size: tuple[int, int], scenes: int, views: int) -> dict:
    """Render `scenes` rooms of `views` views in this process."""
    with tempfile.TemporaryDirectory() as folder:
        render_rooms(Path(folder) / "warm_up", 1, 1, size)
        wall, processor = time.perf_counter(), time.process_time()
        render_rooms(Path(folder) / "measured", scenes, views, size)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    count = scenes * views
    return {
        "size": f"{size[0]}x{size[1]}",
        "views": count,
        "views_per_second_of_one_core": count / processor,
        "views_per_second_of_wall_time": count / wall,
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--views", type=int, default=32)
    options = parser.parse_args()
    rows = [measure(size, options.scenes, options.views) for size in SIZES]
    print_table("Rooms", rows)
    write_figures(options, rows=rows)


if __name__ == "__main__":
    main()
