"""Images of a record as bytes, as `spa3r sft` moves them, against the float32 numbers of the image processor.

    python tests/benchmarks/bench_image_bytes.py --output runs/image_bytes.json

For one record of photos: what a batch takes in memory, and the processor time of preparing it, of moving it to memory
that processes share (as the queue of a loader's worker does), and of making the numbers of the bytes. All are compared
within the run, and the numbers must be equal bit for bit.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from spa3r import Spa3VLMImageProcessor, Spa3VLMProcessor
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer
from spa3r.trainers.tuning.image_bytes import level_tables, pixels_from_bytes, with_image_bytes

PIXELS = ("pixel_values", "pixel_values_geometry")


def make_photos(views: int) -> list[PIL.Image.Image]:
    """Smooth photos of 640 x 480 pixels."""
    coarse = np.random.default_rng(0).integers(0, 256, (views, 30, 40, 3), dtype=np.uint8)
    return [PIL.Image.fromarray(pixels).resize((640, 480), PIL.Image.Resampling.BICUBIC) for pixels in coarse]


def seconds_of(function: Callable[[], object], repeats: int) -> float:
    """Median processor time of this process."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


def seconds_to_send(batch: dict[str, Tensor], repeats: int) -> float:
    """Of what a worker's queue does with tensors: it moves each to memory that processes share."""
    copies = [[tensor.clone() for tensor in batch.values()] for _ in range(1 + repeats)]
    return seconds_of(lambda: [tensor.share_memory_() for tensor in copies.pop()], repeats)


def measure(views: int, width: int, repeats: int) -> dict:
    plain = Spa3VLMImageProcessor(image_width=width)
    carrier = with_image_bytes(Spa3VLMProcessor(plain, byte_tokenizer())).image_processor
    photos, tables = make_photos(views), level_tables(plain)
    counts = {"pixel_values": plain.temporal_patch_size, "pixel_values_geometry": 1}
    batches, rows = {}, []
    for name, processor in {"float32": plain, "bytes": carrier}.items():
        inputs = processor(photos, return_tensors="pt")
        batches[name] = {key: inputs[key] for key in PIXELS}

        def restore(batch=batches[name]):
            return {key: pixels_from_bytes(batch[key], tables[key], counts[key]) for key in PIXELS}

        rows.append(
            {
                "variant": name,
                "megabytes": sum(each.numel() * each.element_size() for each in batches[name].values()) / 1e6,
                "seconds_to_prepare": seconds_of(lambda each=processor: each(photos, return_tensors="pt"), repeats),
                "seconds_to_send": seconds_to_send(batches[name], repeats),
                "seconds_to_restore": seconds_of(restore, repeats) if name == "bytes" else 0.0,
            }
        )
    restored = restore()
    if not all(torch.equal(restored[key], batches["float32"][key]) for key in PIXELS):
        raise RuntimeError("The numbers made of bytes differ from the processor's; there is nothing to compare.")
    before, after = rows
    ratios = {key: after[key] / before[key] for key in ("megabytes", "seconds_to_prepare", "seconds_to_send")}
    return {"views": views, "width": width, "rows": rows, "bytes_to_float32": ratios}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=8, help="photos of a record")
    parser.add_argument("--width", type=int, default=518, help="that photos are resized to, in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(options.views, options.width, options.repeats)
    print(json.dumps(figures, indent=1))
    if options.output:
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
