"""What a part of `make gpu` is given: its device, its clock, and where it notes figures and checks."""

import json
import os
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

# Characters of a traceback to keep.
ERROR_TAIL = 4000


def write_json(file: Path, content: Any):
    """Write a file at once, so that who finds it finds it whole."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(content))
    os.replace(new, file)


class Job:
    """
    A part's device and results.

    Args:
        device (`torch.device`): Where to compute.
        is_tiny (`bool`): Whether this is a rehearsal with tiny models.
        file (`Path`): What is noted is kept here, in case the part does not end.
    """

    def __init__(self, device: torch.device, is_tiny: bool, file: Path):
        self.device, self.is_tiny, self.file = device, is_tiny, file
        self.figures: dict[str, Any] = {}
        self.checks: list[dict[str, Any]] = []
        self.device_is_lost = False

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def result(self) -> dict[str, Any]:
        return {"figures": self.figures, "checks": self.checks}

    def note(self, **figures: Any):
        """Keep figures by name."""
        self.figures |= figures
        write_json(self.file, json.loads(json.dumps(self.result(), default=str)))

    def check(self, what: str, value: float, limit: float):
        """Keep a number that should be at most a limit."""
        value = float(value)
        self.checks.append({"what": what, "value": value, "limit": limit, "holds": value <= limit})
        self.note()

    def attempt(self, what: str, function: Callable[[], Any]) -> Any:
        """The function's result; a failure is noted and gives `None`, and the part goes on."""
        try:
            return function()
        except torch.OutOfMemoryError as error:
            self._note_failure(what, error)
            # The traceback holds the tensors that filled the memory.
            error.__traceback__ = None
            torch.cuda.empty_cache()
        except getattr(torch, "AcceleratorError", ()):
            raise
        except Exception as error:
            self._note_failure(what, error)
        return None

    def _note_failure(self, what: str, error: Exception):
        said = "".join(traceback.format_exception(error))[-ERROR_TAIL:]
        self.checks.append({"what": what, "value": None, "limit": 0, "holds": False, "error": said})
        self.note()

    def synchronize(self):
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, function: Callable[[], Any]) -> float:
        """Seconds until the device has finished what a function asks of it."""
        self.synchronize()
        start = time.perf_counter()
        function()
        self.synchronize()
        return time.perf_counter() - start

    def median_seconds(self, function: Callable[[], Any], repeats: int = 3, warm_up: int = 1) -> float:
        for _ in range(warm_up):
            self.seconds(function)
        return statistics.median(self.seconds(function) for _ in range(1 if self.is_tiny else repeats))

    def peak_gb(self, function: Callable[[], Any]) -> float:
        """GB that a function needs at its peak, above what is allocated when it is called; 0 on a CPU."""
        if not self.on_gpu:
            function()
            return 0.0
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        function()
        self.synchronize()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 1e9

    def build(self, build: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
        """A model of random weights, made on the device; its tables, such as rotary frequencies, stay in float32."""
        torch.manual_seed(0)
        with torch.device(self.device):
            model = build()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        return model.eval()

    def views(self, num_scenes: int, num_views: int, height: int, width: int, seed: int = 0) -> Tensor:
        """Smooth random views of shape `(num_scenes, num_views, 3, height, width)` on the device, the same on any."""
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(num_scenes * num_views, 3, 9, 12, generator=generator)
        views = nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
        return views.clamp(0, 1).unflatten(0, (num_scenes, num_views)).to(self.device)


def difference(given: Any, expected: Any) -> float:
    """Norm of the difference of all tensors of two structures, relative to the norm of those expected."""
    given, expected = tensors_of(given), tensors_of(expected)
    if len(given) != len(expected):
        raise ValueError(f"{len(given)} tensors are to be compared with {len(expected)}; compare equal structures.")
    squares = [
        ((a.double().cpu() - b.double().cpu()).square().sum(), b.double().cpu().square().sum())
        for a, b in zip(given, expected, strict=True)
    ]
    error, norm = (sum(part).sqrt().item() for part in zip(*squares, strict=True))
    return error / norm if norm else error


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def matmul_tflops(job: Job) -> float:
    """Measured bf16 TFLOP/s of a matrix product of 8192 x 8192 x 8192, what shares are given of."""
    side = 256 if job.is_tiny else 8192
    a, b = (torch.randn(side, side, device=job.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = job.median_seconds(lambda: a @ b, repeats=10, warm_up=3)
    return 2 * side**3 / seconds / 1e12
