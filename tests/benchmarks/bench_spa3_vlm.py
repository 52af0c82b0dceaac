"""Speed and memory of Spa3-VLM: many questions of one scene, batches of scenes, and the memory of a prefill.

    python tests/benchmarks/bench_spa3_vlm.py --output runs/bench_vlm.json
    python tests/benchmarks/bench_spa3_vlm.py --preset base --device cuda --dtype bfloat16

Weights and photos are random. Ways to the same answers are compared within one run, and refused if the answers differ.
`measuring.py` and `memory_tracking.py` say how time and memory are taken.
"""

import argparse
import itertools
from functools import partial
from typing import Any

import torch
from bench_spa3r import build_config
from measuring import (
    compare_times,
    make_model_parser,
    parse_model_options,
    print_table,
    print_verdict,
    timed,
    write_figures,
)
from memory_tracking import peak_memory
from PIL import Image
from tiny_spa3_vlm import conversation, photo, prepare, without
from torch import Tensor
from tqdm import tqdm
from transformers import BatchFeature

from spa3r import (
    SceneSession,
    Spa3VLMForConditionalGeneration,
    Spa3VLMImageProcessor,
    Spa3VLMProcessor,
)
from spa3r.configuration import Spa3VLMConfig
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer

# Channels and layers of the language model (a vision tower of the same size), and of VGGT.
PRESETS = {"small": (512, 8, 256, 8), "base": (2048, 36, 1024, 24)}
QUESTION = "How many chairs are there?"
MIN_SESSION_SPEEDUP = 8
# Of one call's time: what a shared machine's clock tells apart.
SLACK = 1.05


def build_model(options: argparse.Namespace) -> Spa3VLMForConditionalGeneration:
    """Qwen2.5-VL-3B, scaled, and a Spa3R; the adapter is not silent."""
    size, layers, vggt_size, vggt_layers = PRESETS[options.preset]
    heads = size // 128
    text_config = {
        "vocab_size": len(byte_tokenizer()),
        "hidden_size": size,
        "intermediate_size": 4 * size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(heads // 8, 1),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 256,
    }
    vision_config = {
        "depth": layers,
        "hidden_size": size // 64 * 40,
        "intermediate_size": 2 * size,
        "num_heads": size // 128,
        "out_hidden_size": size,
        "fullatt_block_indexes": list(range(layers // 4 - 1, layers, layers // 4)),
    }
    tokens = {"vision_start_token_id": 259, "vision_end_token_id": 260, "image_token_id": 261, "video_token_id": 262}
    vlm_config = {"model_type": "qwen2_5_vl", "text_config": text_config, "vision_config": vision_config, **tokens}
    config = Spa3VLMConfig(vlm_config=vlm_config, spatial_config=build_config(vggt_size, vggt_layers).to_dict())
    torch.manual_seed(0)
    model = Spa3VLMForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.fusion.adapter.fc2.weight, std=0.02)
    # Larger weights of the head tell the most likely token from the next.
    model.lm_head.weight.data.mul_(10)
    return model.to(options.device, options.dtype).eval()


def photos(scene: int, options: argparse.Namespace) -> list[Image.Image]:
    """Views that the processor turns into `--height` pixels."""
    return [photo(100 * scene + view, options.width // 3, options.height // 3) for view in range(options.views)]


def make_processor(options: argparse.Namespace) -> Spa3VLMProcessor:
    return Spa3VLMProcessor(Spa3VLMImageProcessor(image_width=options.width), byte_tokenizer())


def ask_alone(model, processor, views: list[Image.Image], question: str, options: argparse.Namespace) -> Tensor:
    """The tokens that answer one question, from photos to answer."""
    return answer(model, prepare(processor, conversation(views, question)).to(options.device), options)


def answer(model: Spa3VLMForConditionalGeneration, inputs: BatchFeature, options: argparse.Namespace) -> Tensor:
    tokens = model.generate(**inputs, max_new_tokens=options.new_tokens, do_sample=False)
    return tokens[:, inputs["input_ids"].shape[1] :]


def refuse_difference(what: str, actual: Tensor, expected: Tensor):
    if not torch.equal(actual, expected):
        raise RuntimeError(f"{what} gives other answers; there is nothing to compare.")


def bench_session(model, processor, options: argparse.Namespace) -> dict[str, Any]:
    """Questions of one scene: each in a call of its own, from a session one after another, and all in one batch.

    The processor is part of it, as photos are prepared anew for each fresh call.
    """
    views = photos(0, options)
    objects = ("chair", "table", "sofa", "lamp", "shelf", "bed")
    askings = ("How many {}s are there?", "How long is the {}, in cm?", "Is the {} left of the door?")
    questions = [asking.format(name) for asking, name in itertools.product(askings, objects)]

    progress = tqdm(questions, desc="Fresh calls", unit="call", leave=False)
    calls = [
        timed(partial(ask_alone, model, processor, views, question, options), options.device) for question in progress
    ]
    expected, fresh_seconds = torch.cat([tokens for tokens, _ in calls]), sum(seconds for _, seconds in calls)

    settings = {"max_new_tokens": options.new_tokens, "do_sample": False}
    session, seeing = timed(lambda: SceneSession(model, processor, views), options.device)
    batch, at_once = timed(lambda: session.generate(questions, **settings), options.device)
    singles, in_turn = timed(lambda: [session.generate([q], **settings) for q in questions], options.device)
    refuse_difference("A session, all questions at once,", batch, expected)
    refuse_difference("A session, one question after another,", torch.cat(singles), expected)
    rows = [
        {"variant": "fresh calls", "seconds": fresh_seconds},
        {"variant": "session, one by one", "seconds": seeing + in_turn},
        {"variant": "session, one batch", "seconds": seeing + at_once},
    ]
    for row in rows:
        row["speedup"] = fresh_seconds / row["seconds"]
    return {"questions": len(questions), "views": options.views, "seconds_to_see": seeing, "rows": rows}


def bench_batch(model, processor, options: argparse.Namespace) -> dict[str, Any]:
    """Four scenes in one batch, and one by one."""
    conversations = [conversation(photos(scene, options), QUESTION) for scene in range(4)]
    batch, *singles = (prepare(processor, each).to(options.device) for each in [conversations, *conversations])
    variants = {
        "4 calls": lambda: torch.cat([answer(model, inputs, options) for inputs in singles]),
        "one batch": lambda: answer(model, batch, options),
    }
    refuse_difference("A batch", variants["one batch"](), variants["4 calls"]())
    seconds = compare_times(variants, options.repeats, options.device)
    rows = [{"variant": name, "seconds": seconds[name]} for name in variants]
    return {"views": options.views, "rows": rows, "ratio": seconds["one batch"] / seconds["4 calls"]}


@torch.no_grad()
def bench_prefill(model, processor, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of the pass over a prompt: whole, of the plain VLM, and of the spatial encoder."""
    inputs = prepare(processor, conversation(photos(0, options), QUESTION)).to(options.device)
    geometry = {name: inputs[name] for name in ("pixel_values_geometry", "geometry_sizes", "num_views")}
    plain = without(inputs, *geometry)
    variants = {
        "Spa3-VLM": lambda: model(**inputs, logits_to_keep=1),
        "plain VLM": lambda: model(**plain, logits_to_keep=1),
        "spatial encoder": lambda: model.encode_scene(**geometry),
    }
    seconds = compare_times(variants, options.repeats, options.device)
    memory = {name: peak_memory(function, options.device) for name, function in variants.items()}
    rows = [{"variant": name, "seconds": seconds[name], "peak_bytes": memory[name]} for name in variants]
    return {
        "views": options.views,
        "tokens": inputs["input_ids"].shape[1],
        "rows": rows,
        "ratio": memory["Spa3-VLM"] / (memory["plain VLM"] + memory["spatial encoder"]),
    }


def parse_options() -> argparse.Namespace:
    parser = make_model_parser(__doc__, PRESETS, repeats=1)
    parser.add_argument("--views", type=int, default=8, help="photos of a scene")
    parser.add_argument("--width", type=int, default=518, help="of the photos for the spatial encoder, in pixels")
    parser.add_argument("--height", type=int, default=392)
    parser.add_argument("--new-tokens", type=int, default=8, help="tokens of each answer")
    return parse_model_options(parser)


def main():
    options = parse_options()
    processor, model = make_processor(options), build_model(options)

    session = bench_session(model, processor, options)
    title = f"{session['questions']} questions of a scene of {options.views} views"
    title += f", answers of {options.new_tokens} tokens"
    print_table(title, session["rows"])
    is_met = session["rows"][-1]["speedup"] >= MIN_SESSION_SPEEDUP
    print_verdict(f"a session {MIN_SESSION_SPEEDUP} times faster", is_met)

    batch = bench_batch(model, processor, options)
    print_table(f"4 scenes of {options.views} views", batch["rows"])
    print_verdict(f"a batch not slower (it takes {batch['ratio']:.2f} of the time)", batch["ratio"] <= SLACK)

    prefill = bench_prefill(model, processor, options)
    print_table(f"Prefill of {prefill['tokens']} tokens", prefill["rows"])
    print_verdict(f"peak at most the sum of its parts' (it is {prefill['ratio']:.2f} of that)", prefill["ratio"] <= 1)
    write_figures(options, session=session, batch=batch, prefill=prefill)


if __name__ == "__main__":
    main()
