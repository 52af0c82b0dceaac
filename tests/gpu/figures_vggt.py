"""VGGT-1B: time, share of the device's peak, and memory, by attention kernel, and compiled."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from gpu.job import Job, difference, matmul_tflops
from gpu.models import base_config, view_size
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import GradientCheckpointingLayer

from spa3r import VGGTModel

KERNELS = {
    "torch's choice": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def build_vggt(job: Job) -> VGGTModel:
    return job.build(lambda: VGGTModel(base_config(job).vggt_config), torch.bfloat16)


def many_views(job: Job) -> torch.Tensor:
    return job.views(1, 4 if job.is_tiny else 24, *view_size(job))


def count_tflop(function: Callable) -> float:
    """TFLOP of the matrix and attention products of a function."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e12


@torch.no_grad()
def vggt(job: Job):
    """24 views of 518 x 392 in bfloat16."""
    peak = matmul_tflops(job)
    model, views = build_vggt(job), many_views(job)
    tflop = count_tflop(lambda: model(views))
    job.note(views=list(views.shape), matmul_tflops=peak, tflop=tflop)
    rows = []
    for name, kernel in KERNELS.items():
        if not (job.on_gpu or kernel is None):
            continue

        def measure(name=name, kernel=kernel):
            with nullcontext() if kernel is None else sdpa_kernel(kernel):
                seconds = job.median_seconds(lambda: model(views))
                asymmetric = job.median_seconds(lambda: model(views, num_context_views=views.shape[1] // 2))
                memory = job.peak_gb(lambda: model(views))
            row = {"attention": name, "seconds": seconds, "share_of_peak": tflop / seconds / peak}
            rows.append(row | {"seconds_half_context": asymmetric, "peak_gb": memory})
            job.note(rows=rows)

        job.attempt(name, measure)


def compile_blocks(job: Job, model: nn.Module):
    """Compile each block of the model's transformers on its own."""
    for block in model.modules():
        if isinstance(block, GradientCheckpointingLayer):
            block.compile(dynamic=False, **({} if job.on_gpu else {"backend": "eager"}))


@torch.no_grad()
def vggt_compiled(job: Job):
    """The same with every block compiled."""
    peak = matmul_tflops(job)
    model, views = build_vggt(job), many_views(job)
    tflop = count_tflop(lambda: model(views))
    expected = model(views).patch_tokens
    eager = job.median_seconds(lambda: model(views))
    job.note(matmul_tflops=peak, eager_seconds=eager)
    torch._dynamo.utils.counters.clear()
    compile_blocks(job, model)
    job.note(seconds_to_compile=job.seconds(lambda: model(views)))
    graphs = torch._dynamo.utils.counters["stats"].get("unique_graphs")
    seconds = job.median_seconds(lambda: model(views))
    job.note(seconds=seconds, share_of_peak=tflop / seconds / peak, graphs=graphs)
    job.note(peak_gb=job.peak_gb(lambda: model(views)), tokens=list(expected.shape))
    job.check("features, compiled against not, bfloat16", difference(model(views).patch_tokens, expected), 0.05)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if job.on_gpu else nullcontext():
        job.note(seconds_cudnn=job.attempt("cudnn", lambda: job.median_seconds(lambda: model(views))))


def longest_kernels(job: Job, function: Callable, number: int = 20) -> dict[str, list[dict]]:
    """Kernels, and operations of torch, that take most of the device's time, and how long the device is busy."""
    seconds = job.median_seconds(function)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if job.on_gpu else [])
    with profile(activities=activities) as profiler:
        function()
        job.synchronize()
    on_device: dict[bool, list] = {False: [], True: []}
    for event in profiler.key_averages():
        # Ranges that surround other kernels are named after what the host does.
        if not event.key.startswith(("Optimizer.", "ProfilerStep", "Torch-Compiled")):
            on_device["CPU" not in str(event.device_type)].append(event)
    kernels, operations = (_longest(job, on_device[place], number) for place in (True, False))
    return {"seconds": seconds, "busy_share": kernels[0]["seconds"] / seconds, "kernels": kernels} | {
        "operations": operations
    }


def _longest(job: Job, events: list, number: int) -> list[dict]:
    times = [event.self_device_time_total if job.on_gpu else event.self_cpu_time_total for event in events]
    total = sum(times)
    ranked = sorted(zip(times, events, strict=True), key=lambda pair: -pair[0])[:number]
    rows = [{"name": event.key[:120], "calls": event.count, "share": time / total} for time, event in ranked if time]
    return [{"name": "all", "seconds": total / 1e6}, *rows]


@torch.no_grad()
def vggt_kernels(job: Job):
    """Which kernels VGGT's time goes to."""
    model, views = build_vggt(job), many_views(job)
    job.note(**longest_kernels(job, lambda: model(views)))
