"""`spa3r serve` under load: requests a second, their times and memory, beside the same requests one by one.

    python tests/benchmarks/bench_serve.py --output runs/bench_serve.json
    python tests/benchmarks/bench_serve.py --model checkpoints/spa3-vlm-4b --device cuda --views 8 --size 640x480

Rooms are rendered, and questions about them asked in a random order: by fresh calls of `generate`, which decode and
encode the photos of each question; by one client of the server, which waits for each answer; and by many clients at a
time. Answers are compared within the run, and refused if they differ. Server and clients share one process. Other work
on the machine changes times, so the ratios of processor time say most there.
"""

import argparse
import base64
import http.client
import io
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from measuring import make_parser, print_table, write_figures
from serving import NAME, limits_of, metric, running_server
from transformers.utils import logging

import spa3r
from spa3r.data_scripts.rooms.generate import render_rooms
from spa3r.modeling_spa3r.checkpoints.loading import load_processor, load_spa3_vlm

QUESTIONS = (
    "What is the size of this room (in square meters)?",
    "How many chair(s) are in this room?",
    "How many table(s) are in this room?",
    "What is the length of the longest dimension of the bed, measured in centimeters?",
)
GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def main(arguments: Sequence[str] | None = None):
    options = parse(arguments)
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    model = load_spa3_vlm(options.model, dtype="auto").to(options.device).eval()
    processor = load_processor(options.model)
    with tempfile.TemporaryDirectory() as folder:
        scenes = render(Path(folder), options)
    draw = random.Random(0)
    asked = [(draw.randrange(options.scenes), draw.choice(QUESTIONS)) for _ in range(options.requests)]
    limits = limits_of(max_images=options.views, max_pixels=10**9, max_body=10**9, max_requests=options.clients + 1)
    with running_server(model, processor, limits) as (address, _):
        bodies = {pair: body_of(scenes, *pair, options.tokens) for pair in sorted(set(asked))}

        def ask(pair) -> str:
            return post(address, bodies[pair])

        few = asked[: options.fresh]
        alone = measure(few, lambda pair: fresh_answer(model, processor, scenes, *pair, options.tokens))
        for pair in few:
            ask(pair)  # encodes their scenes, and warms up
        single = measure(asked[: options.single], ask)
        blocks = [asked[start : start + options.block] for start in range(0, len(asked), options.block)]
        many, memory = [], []
        for block in blocks:
            many.append(measure(block, ask, options.clients))
            memory.append(resident_megabytes())
        expected = dict(zip(few, alone["answers"], strict=True))
        given = [pair for block in blocks for pair in block], [text for run in many for text in run["answers"]]
        wrong = [pair for pair, text in zip(*given, strict=True) if text != expected.get(pair, text)]
        if wrong:
            sys.exit(f"{len(wrong)} answers of the server differ from fresh ones, the first to {wrong[0]}.")
        encoded = metric(address, "spa3r_scenes_encoded_total")
    rows = [summarize("fresh calls", [alone]), summarize("one client", [single])]
    rows.append(summarize(f"{options.clients} clients", many))
    for row in rows:
        row["times the fresh rate"] = row["requests a second"] / rows[0]["requests a second"]
        row["processor time to fresh"] = row["processor s a request"] / rows[0]["processor s a request"]
    growth = {"requests": len(asked), "scenes encoded": encoded}
    growth |= {f"MB after {options.block * (index + 1)}": memory[index] for index in marks(len(memory))}
    print_table("Requests", rows)
    print_table("Memory of the process", [growth])
    write_figures(options, requests=rows, megabytes=memory, scenes_encoded=encoded)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=spa3r.nano_path("spa3-vlm-nano"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--size", default="112x84")
    parser.add_argument("--tokens", type=int, default=16, help="longest answer")
    parser.add_argument("--requests", type=int, default=2000, help="of many clients")
    parser.add_argument("--single", type=int, default=200, help="requests of one client")
    parser.add_argument("--fresh", type=int, default=40, help="fresh calls")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--block", type=int, default=250, help="requests between two looks at memory")
    return parser.parse_args(arguments)


def render(folder: Path, options: argparse.Namespace) -> list[list[bytes]]:
    """The photos of each room, as files."""
    width, height = map(int, options.size.split("x"))
    rooms = render_rooms(folder, num_scenes=options.scenes, num_views=options.views, size=(width, height), seed=7)
    return [[(room / "color" / f"{view}.jpg").read_bytes() for view in range(options.views)] for room in rooms]


def body_of(scenes: list[list[bytes]], scene: int, question: str, max_tokens: int) -> bytes:
    """A request to the server."""
    urls = [f"data:image/jpeg;base64,{base64.b64encode(photo).decode()}" for photo in scenes[scene]]
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content.append({"type": "text", "text": question})
    message = {"role": "user", "content": content}
    request = {"model": NAME, "messages": [message], "max_tokens": max_tokens, "temperature": 0}
    return json.dumps(request).encode()


def post(address: str, body: bytes) -> str:
    """The answer of the server."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    content = json.load(connection.getresponse())
    connection.close()
    return content["choices"][0]["message"]["content"]


def fresh_answer(model, processor, scenes: list[list[bytes]], scene: int, question: str, max_tokens: int) -> str:
    """The answer of one call that decodes and encodes the photos."""
    content = [{"type": "image", "image": PIL.Image.open(io.BytesIO(photo))} for photo in scenes[scene]]
    content.append({"type": "text", "text": question})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    tokens = model.generate(**inputs, max_new_tokens=max_tokens, **GREEDY)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def measure(asked: Sequence, ask: Callable[[Any], str], num_clients: int = 1) -> dict[str, Any]:
    """Ask; returns the answers, the seconds of each request, and wall and processor seconds of all."""

    def timed_ask(pair) -> tuple[str, float]:
        start = time.perf_counter()
        answer = ask(pair)
        return answer, time.perf_counter() - start

    start, processor_start = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(num_clients) as pool:
        answers, seconds = zip(*pool.map(timed_ask, asked), strict=True)
    wall, processor = time.perf_counter() - start, time.process_time() - processor_start
    return {"answers": answers, "seconds": seconds, "wall": wall, "processor": processor}


def summarize(name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seconds = [each for run in runs for each in run["seconds"]]
    return {
        "asked by": name,
        "requests": len(seconds),
        "requests a second": len(seconds) / sum(run["wall"] for run in runs),
        "processor s a request": sum(run["processor"] for run in runs) / len(seconds),
        "p50 s": statistics.median(seconds),
        "p99 s": statistics.quantiles(seconds, n=100, method="inclusive")[98],
    }


def marks(number: int) -> list[int]:
    """The first, the middle and the last of a number of looks."""
    return sorted({0, number // 2, number - 1})


def resident_megabytes() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    main()
