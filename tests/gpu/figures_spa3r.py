"""Spa3R at full size: latents by number of views, and a step of pre-training at the paper's settings."""

import statistics
import time

import torch
from gpu.correctness import use_tf32
from gpu.figures_vggt import compile_blocks, longest_kernels
from gpu.job import Job
from gpu.models import base_config, view_size
from torch import nn

from spa3r import Spa3RForPreTraining, Spa3RModel

# Of the recipe spa3r-paper: 24 images a device, here as scenes of 12 views and of 6.
SCENES = ((2, 12), (4, 6))


@torch.no_grad()
def latents(job: Job):
    """Time and memory of the latents of more and more views, in bfloat16."""
    model = job.build(lambda: Spa3RModel(base_config(job)), torch.bfloat16)
    rows = []
    for num_views in (2, 4) if job.is_tiny else (8, 16, 32, 64, 128):
        views = job.views(1, num_views, *view_size(job))

        def measure(num_views=num_views, views=views):
            repeats = 3 if num_views <= 32 else 1
            seconds = job.median_seconds(lambda: model(views), repeats)
            rows.append({"views": num_views, "seconds": seconds, "peak_gb": job.peak_gb(lambda: model(views))})
            job.note(rows=rows)

        job.attempt(f"{num_views} views", measure)


class Clock:
    """Seconds between the start and the end of modules' forward passes, by events on the device, without waiting."""

    def __init__(self, job: Job, modules: dict[str, nn.Module]):
        self.job, self.marks = job, {}
        for name, module in modules.items():
            module.register_forward_pre_hook(lambda *_, name=name: self.mark(name))
            module.register_forward_hook(lambda *_, name=name: self.mark(name))

    def mark(self, name: str):
        if self.job.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        else:
            event = time.perf_counter()
        self.marks.setdefault(name, []).append(event)

    def take(self) -> dict[str, float]:
        """Seconds of each name since the last time, the sum of its passes."""
        self.job.synchronize()
        marks, self.marks = self.marks, {}
        return {
            name: sum(self._between(*pair) for pair in zip(events[::2], events[1::2], strict=True))
            for name, events in marks.items()
        }

    def _between(self, start, end) -> float:
        return start.elapsed_time(end) / 1e3 if self.job.on_gpu else end - start


def build_pretraining(job: Job) -> tuple[Spa3RForPreTraining, list[nn.Parameter], torch.optim.Optimizer]:
    """The model in float32, as it trains under autocast, and its optimizer."""
    model = job.build(lambda: Spa3RForPreTraining(base_config(job))).train()
    model.freeze_teachers()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, trained, torch.optim.AdamW(trained, lr=1e-3, fused=True)


def forward(job: Job, model: Spa3RForPreTraining, views: torch.Tensor):
    with torch.autocast(job.device.type, torch.bfloat16):
        return model(views, num_context_views=views.shape[1] // 2)


def update(trained: list[nn.Parameter], optimizer: torch.optim.Optimizer):
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def pretraining(job: Job):
    """A step of 24 images by part; the encoder's and the decoder's forward passes are apart from their backward."""
    use_tf32(True)
    model, trained, optimizer = build_pretraining(job)
    clock = Clock(
        job,
        {
            "VGGT": model.model.vggt,
            "camera head": model.camera_head,
            "depth head": model.depth_head,
            "DINO": model.teachers["semantic"],
            "encoder": model.model.encoder,
            "decoder": model.decoder,
        },
    )
    rows = []
    for num_scenes, num_views in SCENES:
        views = job.views(num_scenes, num_views, *view_size(job))

        def step(views=views):
            clock.mark("forward")
            loss = forward(job, model, views).loss
            clock.mark("forward")
            clock.mark("backward")
            loss.backward()
            clock.mark("backward")
            clock.mark("optimizer")
            update(trained, optimizer)
            clock.mark("optimizer")
            return loss

        def measure(num_scenes=num_scenes, num_views=num_views, step=step):
            memory = job.peak_gb(step)
            losses = [step().item()]
            clock.take()
            runs = []
            for _ in range(1 if job.is_tiny else 5):
                seconds = job.seconds(lambda: losses.append(step()))
                runs.append(clock.take() | {"step": seconds})
            parts = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            inner = ("VGGT", "camera head", "depth head", "DINO", "encoder", "decoder")
            parts["heads and losses"] = parts.pop("forward") - sum(parts[name] for name in inner)
            bad = sum(not torch.as_tensor(loss).isfinite() for loss in losses)
            job.check(f"{num_scenes} scenes of {num_views} views, losses that are not finite", bad, 0)
            images = num_scenes * num_views / parts["step"]
            rows.append({"scenes": num_scenes, "views": num_views, "images_per_second": images, "peak_gb": memory})
            rows[-1]["seconds"] = parts
            job.note(rows=rows)

        job.attempt(f"{num_scenes} scenes of {num_views} views", measure)


def pretraining_kernels(job: Job):
    """Which kernels a step of pre-training's time goes to."""
    use_tf32(True)
    model, trained, optimizer = build_pretraining(job)
    views = job.views(*SCENES[0], *view_size(job))

    def step():
        forward(job, model, views).loss.backward()
        update(trained, optimizer)

    job.note(**longest_kernels(job, step))


def pretraining_variants(job: Job):
    """Seconds of a step as it is, with the large teachers' weights in bfloat16, and with blocks compiled."""
    use_tf32(True)
    model, trained, optimizer = build_pretraining(job)
    views = job.views(*SCENES[0], *view_size(job))
    losses = {}

    def measure(name: str):
        def step():
            loss = forward(job, model, views).loss
            loss.backward()
            update(trained, optimizer)

        with torch.no_grad():
            losses[name] = forward(job, model, views).loss.item()
        compile_seconds = job.seconds(step)
        seconds = job.median_seconds(step, repeats=3, warm_up=0)
        job.note(losses=losses, **{name: {"seconds": seconds, "first": compile_seconds, "peak_gb": job.peak_gb(step)}})

    job.attempt("as it is", lambda: measure("as it is"))
    for module in (model.model.vggt, model.teachers["semantic"]):
        module.to(torch.bfloat16)
    job.attempt("teachers in bfloat16", lambda: measure("teachers in bfloat16"))
    compile_blocks(job, model)
    job.attempt("compiled blocks too", lambda: measure("compiled blocks too"))
