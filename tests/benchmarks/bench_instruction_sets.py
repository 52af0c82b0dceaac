"""Conversion of VSI-590K records: records per second, and peak memory, which must not grow with their number.

    python tests/benchmarks/bench_instruction_sets.py --records 10000 100000 --workers 2

Records are synthetic, and three of four are about a video. They share a few tiny media, which are decoded once, so the
benchmark measures the work per record. Annotations are read as lines of JSON and as one JSON list. Each conversion
runs in its own process; peak memory is the resident set of that process and of its largest worker.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from measuring import make_parser, peak_megabytes, print_table, write_figures
from PIL import Image

NUM_SCENES = 16


def write_media(root: Path) -> None:
    """A video of twenty frames and an image for each scene."""
    for scene in range(NUM_SCENES):
        video, image = root / f"scannet/scene{scene:04d}_00.mp4", root / f"hypersim/ai_{scene:03d}/frame.jpg"
        for path in (video, image):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (scene, 0, 0)).save(image)
        with av.open(str(video), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for index in range(20):
                pixels = np.full((48, 64, 3), 12 * index, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())


def write_records(path: Path, number: int, as_list: bool) -> None:
    """Records of the length and shape of VSI-590K's; no two are equal."""
    start, separator, end = ("[", ",\n", "]") if as_list else ("", "\n", "\n")
    with open(path, "w", encoding="utf-8") as file:
        file.write(start)
        for index in range(number):
            scene = index % NUM_SCENES
            media = (
                {"video": f"scannet/scene{scene:04d}_00.mp4"}
                if index % 4
                else {"image": f"hypersim/ai_{scene:03d}/frame.jpg"}
            )
            question = (
                f"<image>\nThese are frames of a video.\nMeasuring from the closest point of each object, what is the "
                f"distance between table {index} and the bookcase (in meters)?\nPlease answer the question using a "
                "single word or phrase."
            )
            answer = {"from": "gpt", "value": f"{index % 97 / 10}"}
            record = {"conversations": [{"from": "human", "value": question}, answer]}
            record |= {"question_type": ("absolute_distance_object", "absolute_count")[index % 2], **media}
            file.write((separator if index else "") + json.dumps(record))
        file.write(end)


def convert_and_measure(input_file: str, media: str, output: str, workers: int) -> dict:
    """Convert in this process, which must be a fresh one."""
    from spa3r.data_scripts.instructions.convert import convert
    from spa3r.data_scripts.instructions.vsi590k import read_record

    before, start = peak_megabytes(), time.perf_counter()
    manifest = convert(read_record, "vsi590k", input_file, media, output, [], workers)
    return {
        "kept": manifest["kept"],
        "seconds": time.perf_counter() - start,
        "megabytes_after_imports": before,
        "peak_megabytes": peak_megabytes(),
        "peak_megabytes_of_largest_worker": peak_megabytes(resource.RUSAGE_CHILDREN) if workers > 1 else 0,
    }


def measure(folder: Path, number: int, as_list: bool, workers: int) -> dict:
    """Convert `number` records in a fresh process."""
    input_file, output = folder / "records.json", folder / f"set_{number}_{as_list}_{workers}"
    write_records(input_file, number, as_list)
    command = [sys.executable, __file__, "--convert", input_file, folder / "media", output, str(workers)]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if result["kept"] != number:
        raise RuntimeError(f"{result['kept']} of {number} records were kept")
    figures = {"records": number, "input": "list" if as_list else "lines", "workers": workers}
    return figures | result | {"records_per_second": number / result["seconds"]}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--convert", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.convert:
        print(json.dumps(convert_and_measure(*options.convert[:3], int(options.convert[3]))))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        write_media(Path(folder) / "media")
        for workers in options.workers:
            for as_list in (False, True):
                results += [measure(Path(folder), number, as_list, workers) for number in options.records]
    print_table("Conversion", results)
    write_figures(options, rows=results)


if __name__ == "__main__":
    main()
