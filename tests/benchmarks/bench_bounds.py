"""What bounds Spa3R's speed: how much of each part's time its products take, which any code for the same model needs.

    python tests/benchmarks/bench_bounds.py --output runs/bench_bounds.json

The same model as `bench_spa3r.py`, on a CPU. Products are those whose operations torch can count: of matrices, of
attention, and convolutions. `of_peak` compares their rate, over the whole time of a part, with that of one large
matrix product in the same process.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from bench_spa3r import IMAGES_PER_DEVICE, LATENT_VIEWS, PRESETS, build_config, random_views
from measuring import make_model_parser, parse_model_options, print_table, timed, write_figures
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from spa3r import Spa3RForPreTraining, Spa3RModel, VGGTModel

PEAK_SIDE = 2048
VIEWS = 12
FROZEN = ("VGGT", "camera head", "depth head", "DINO")
KINDS = ("matrices", "attention", "convolutions")


def attention_flop(query, key, value, *arguments, **options) -> int:
    return sdpa_flop_count(query, key, value)


def attention_backward_flop(gradient, query, key, value, *arguments, **options) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# Operations on a CPU that torch does not count by itself.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flop,
}


class ProductClock(TorchDispatchMode):
    """Seconds of processor time of parts, modules' forward passes and runs, and of their products."""

    def __init__(self, modules: dict[str, nn.Module] | None = None):
        super().__init__()
        self.part, self.started, self.seconds = "", 0.0, Counter()
        for name, module in (modules or {}).items():
            module.register_forward_pre_hook(lambda *_, name=name: self.enter(name))
            module.register_forward_hook(lambda *_: self.enter(self.outer))

    def enter(self, part: str):
        now = time.process_time()
        self.seconds[self.part, "all"] += now - self.started
        self.part, self.started = part, now

    def run(self, part: str, function: Callable[[], Any]) -> Any:
        self.outer = part
        with self:
            self.enter(part)
            result = function()
            self.enter("")
        return result

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        start = time.process_time()
        output = function(*args, **(kwargs or {}))
        if function._overloadpacket in flop_registry | ATTENTION:
            self.seconds[self.part, kind_of(str(function))] += time.process_time() - start
        return output


def kind_of(operation: str) -> str:
    return "attention" if "attention" in operation else "convolutions" if "conv" in operation else "matrices"


def measure_peak(options: argparse.Namespace) -> float:
    """GFLOP a second of a large matrix product: the fastest of several."""
    left, right = torch.rand(2, PEAK_SIDE, PEAK_SIDE, device=options.device).to(options.dtype)
    seconds = min(timed(lambda: left @ right, options.device)[1] for _ in range(5))
    return 2 * PEAK_SIDE**3 / seconds / 1e9


def make_row(part: str, seconds: dict[str, float], gflop: float, peak: float) -> dict[str, Any]:
    row = {"part": part, "seconds": seconds["all"], "gflop": gflop, "of_peak": gflop / peak / seconds["all"]}
    row |= {kind: seconds.get(kind, 0) / seconds["all"] for kind in KINDS}
    return row | {"all_else": 1 - sum(row[kind] for kind in KINDS)}


def medians(runs: list[Counter], part: str) -> dict[str, float]:
    return {kind: statistics.median(run[part, kind] for run in runs) for kind in ("all", *KINDS)}


@torch.no_grad()
def bench_forward(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Features of 12 views, half of them context, and latents of more and more views."""
    config, views = build_config(options.hidden_size, options.layers), random_views(VIEWS, options)
    vggt, model = (
        each.to(options.device, options.dtype).eval() for each in (VGGTModel(config.vggt_config), Spa3RModel(config))
    )
    calls = {f"features of {VIEWS} views": lambda: vggt(views, VIEWS // 2)}
    for number in LATENT_VIEWS:
        many = random_views(number, options)
        calls[f"latents of {number} views"] = lambda many=many: model(many)
    peak, rows = measure_peak(options), []
    for name, call in calls.items():
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            call()
        runs = [ProductClock() for _ in range(options.repeats)]
        for clock in runs:
            clock.run(name, call)
        seconds = medians([clock.seconds for clock in runs], name)
        rows.append(make_row(name, seconds, counter.get_total_flops() / 1e9, peak))
    return rows


def bench_step(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A step of pre-training of 24 images, without its loader and optimizer, which take less than 1 %."""
    torch.manual_seed(0)
    model = Spa3RForPreTraining(build_config(options.hidden_size, options.layers)).to(options.device).train()
    model.freeze_teachers()
    views = random_views(IMAGES_PER_DEVICE, options).unflatten(1, (-1, VIEWS)).squeeze(0)
    modules = {
        "VGGT": model.model.vggt,
        "camera head": model.camera_head,
        "depth head": model.depth_head,
        "DINO": model.teachers["semantic"],
        "encoder": model.model.encoder,
        "decoder": model.decoder,
    }

    def forward() -> torch.Tensor:
        return model(views, num_context_views=VIEWS // 2).loss

    gflop = count_parts(model, modules, forward)
    clock, runs, peak = ProductClock(modules), [], measure_peak(options)
    for _ in range(options.repeats):
        clock.seconds = Counter()
        loss = clock.run("heads and losses", forward)
        clock.run("backward", loss.backward)
        runs.append(clock.seconds)
    seconds = {name: medians(runs, name) for name in gflop}
    for name, parts in {"frozen teachers": FROZEN, "step": tuple(gflop)}.items():
        gflop[name] = sum(gflop[part] for part in parts)
        seconds[name] = {kind: sum(seconds[part][kind] for part in parts) for kind in ("all", *KINDS)}
    rows = [make_row(name, seconds[name], gflop[name], peak) for name in gflop]
    return [row | {"share": row["seconds"] / rows[-1]["seconds"]} for row in rows]


def count_parts(
    model: nn.Module, modules: dict[str, nn.Module], forward: Callable[[], torch.Tensor]
) -> dict[str, float]:
    """GFLOP of the parts of a step."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        loss = forward()
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as backward:
        loss.backward()
    counts, names = counter.get_flop_counts(), {module: name for name, module in model.named_modules()}
    gflop = {
        name: sum(counts[f"{type(model).__name__}.{names[module]}"].values()) / 1e9 for name, module in modules.items()
    }
    gflop["heads and losses"] = counter.get_total_flops() / 1e9 - sum(gflop.values())
    return gflop | {"backward": backward.get_total_flops() / 1e9}


def main():
    options = parse_model_options(make_model_parser(__doc__, PRESETS, repeats=3))
    vars(options).update(PRESETS[options.preset])
    forward = bench_forward(options)
    print_table("Forward passes", forward)
    step = bench_step(options)
    print_table(f"Pre-training step of {IMAGES_PER_DEVICE} images, as scenes of {VIEWS} views", step)
    write_figures(options, forward=forward, step=step)


if __name__ == "__main__":
    main()
