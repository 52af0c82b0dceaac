"""Whether the GPU computes what the CPU does: kernels, precisions, batches, caches, gradients, and no waiting."""

import copy
import os
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from gpu.job import Job, difference, tensors_of
from gpu.models import (
    NANO_SIZE,
    QUESTIONS,
    base_config,
    nano_inputs,
    nano_spa3r,
    nano_vggt,
    nano_vlm,
    photos,
    view_size,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoProcessor

from spa3r import SceneSession, Spa3RModel, nano_path
from spa3r.modeling_spa3r.geometry import PRoPE, camera_rays, plucker_rays, relative_cameras

ROOT = Path(__file__).resolve().parents[2]
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
ROWS = tuple(range(len(QUESTIONS)))


def use_tf32(allowed: bool):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


@torch.no_grad()
def geometry_of(job: Job, dtype: torch.dtype = torch.float32, device=None) -> dict:
    """Everything that the shipped VGGT says of two scenes, as float32 on its device."""
    model = nano_vggt(device or job.device, dtype)
    views = job.views(2, 6, *NANO_SIZE).to(model.device)
    features = model.vggt(views, num_context_views=3).patch_tokens
    output = model(views)
    names = ("extrinsics", "intrinsics", "depth", "points")
    return {"features": features} | {name: getattr(output, name) for name in names}


@torch.no_grad()
def pretraining_of(job: Job, dtype: torch.dtype = torch.float32, device=None) -> dict:
    """What the shipped Spa3R predicts, and its losses."""
    model = nano_spa3r(device or job.device, dtype)
    output = model(job.views(2, 6, *NANO_SIZE).to(model.device), num_context_views=3)
    latents = model.model(job.views(2, 6, *NANO_SIZE).to(model.device)).latents
    return {
        "latents": latents,
        "predicted features": output.predicted_features,
        "target features": output.target_features,
        "losses": output.losses,
        "probed depth": output.probe_depth,
    }


@torch.no_grad()
def logits_of(job: Job, dtype: torch.dtype = torch.float32, device=None) -> dict:
    """Logits of the shipped Spa3-VLM for a padded batch of three scenes."""
    model = nano_vlm(device or job.device, dtype)
    inputs = nano_inputs(*ROWS).to(model.device)
    return {"logits": model(**inputs).logits[inputs["attention_mask"].bool()]}


OUTPUTS = (geometry_of, pretraining_of, logits_of)


def cuda_against_cpu(job: Job):
    """All outputs of the shipped models in float32, on the device and on the CPU."""
    for outputs in OUTPUTS:

        def compare(outputs=outputs):
            given, expected = outputs(job), outputs(job, device="cpu")
            for name in given:
                job.check(f"{name}, float32, device against CPU", difference(given[name], expected[name]), 1e-4)

        job.attempt(outputs.__name__, compare)


def half_precision(job: Job):
    """The same in half precision against float32, all on the device."""
    for outputs in OUTPUTS:
        expected = job.attempt(outputs.__name__, lambda outputs=outputs: outputs(job))
        for precision, dtype in HALF.items():

            def compare(outputs=outputs, expected=expected, precision=precision, dtype=dtype):
                given = outputs(job, dtype)
                for name in given:
                    is_finite = all(tensor.isfinite().all() for tensor in tensors_of(given[name]))
                    job.check(f"{name}, {precision}, not finite", 0 if is_finite else 1, 0)
                    limit = 0.1 if precision == "bfloat16" else 0.02
                    job.check(f"{name}, {precision} against float32", difference(given[name], expected[name]), limit)

            if expected is not None:
                job.attempt(f"{outputs.__name__}, {precision}", compare)


def tf32(job: Job):
    """TF32 may change features, but nothing that is computed from given cameras."""
    cameras = {}
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(2, 6, 3, 3, generator=generator))[0]
    extrinsics = torch.eye(4).repeat(2, 6, 1, 1)
    extrinsics[..., :3, :3], extrinsics[..., :3, 3] = rotation, torch.randn(2, 6, 3, generator=generator)
    intrinsics = torch.tensor([[100.3, 0, 55.7], [0, 98.1, 41.9], [0, 0, 1]]).expand(2, 6, 3, 3)
    extrinsics, intrinsics = extrinsics.to(job.device), intrinsics.to(job.device)
    tokens = torch.randn(2, 2, 6 * 48, 32, generator=generator).to(job.device)
    for allowed in (False, True):
        use_tf32(allowed)
        relative, _ = relative_cameras(extrinsics)
        rays = camera_rays(intrinsics, (6, 8), 14)
        encoding = PRoPE(relative, intrinsics, (6, 8), NANO_SIZE, 32)
        cameras[allowed] = {
            "relative cameras": relative,
            "rays": rays,
            "Plücker rays": plucker_rays(relative, rays),
            "matrices of PRoPE": (encoding.query_matrix, encoding.key_matrix, encoding.output_matrix),
            "tokens rotated by PRoPE": encoding.rotate(tokens, tokens, tokens),
        }
    for name, given in cameras[True].items():
        # What multiplies tokens may round as the model's other products do.
        limit = 2e-3 if name.startswith("tokens") else 1e-6
        job.check(f"{name}, TF32 on against off", difference(given, cameras[False][name]), limit)

    outputs = {}
    for allowed in (False, True):
        use_tf32(allowed)
        outputs[allowed] = job.attempt("outputs", lambda: geometry_of(job) | pretraining_of(job))
    use_tf32(False)
    for name, given in (outputs[True] or {}).items():
        job.check(f"{name}, TF32 on against off", difference(given, outputs[False][name]), 2e-2)


@torch.no_grad()
def attention_kernels(job: Job):
    """VGGT with each attention kernel in bfloat16 against plain products in float32."""
    model, views = nano_vggt(job.device).vggt, job.views(1, 8, *NANO_SIZE)
    with sdpa_kernel(SDPBackend.MATH):
        expected = model(views, num_context_views=4).patch_tokens
        model.to(torch.bfloat16)
        plain = difference(model(views, num_context_views=4).patch_tokens, expected)
    job.check("features, plain products in bfloat16", plain, 0.1)
    heads, tokens = (2, 64) if job.is_tiny else (16, 4 * 1041)
    query, key, value = torch.randn(3, 1, heads, tokens, 64, device=job.device, dtype=torch.bfloat16)
    with sdpa_kernel(SDPBackend.MATH):
        exact = torch.nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float())
    for name, kernel in KERNELS.items():
        if not (job.on_gpu or name == "flash"):
            continue

        def compare(name=name, kernel=kernel):
            with sdpa_kernel(kernel):
                features = model(views, num_context_views=4).patch_tokens
                product = torch.nn.functional.scaled_dot_product_attention(query, key, value)
            job.check(f"features, {name}", difference(features, expected), 2 * plain)
            job.check(f"an attention product of VGGT-1B, {name}", difference(product, exact), 0.01)

        job.attempt(name, compare)


@torch.no_grad()
def batches(job: Job):
    """A batch gives what its scenes give one by one, in float32."""
    spa3r, views = nano_spa3r(job.device), job.views(3, 5, *NANO_SIZE)
    for name, function in {
        "VGGT's features": lambda views: spa3r.model.vggt(views, num_context_views=2).patch_tokens,
        "latents": lambda views: spa3r.model(views).latents,
        "losses of PSFM's features": lambda views: spa3r(views, num_context_views=2).predicted_features["geometry"],
    }.items():
        singles = torch.cat([function(view[None]) for view in views])
        job.check(f"{name}, batch against singles", difference(function(views), singles), 5e-5)

    model, batch = nano_vlm(job.device), nano_inputs(*ROWS).to(job.device)
    logits, answers = model(**batch).logits, answers_of(model, batch)
    for row in ROWS:
        single = nano_inputs(row).to(job.device)
        given, expected = logits[row][batch["attention_mask"][row].bool()], model(**single).logits[0]
        job.check(f"logits of row {row}, batch against single", difference(given, expected), 1e-4)
        count_different(job, f"answer of row {row}, batch against single", answers[row], answers_of(model, single)[0])


def answers_of(model, inputs, **options) -> torch.Tensor:
    """16 greedy tokens of each row, which do not end early."""
    settings = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}
    return model.generate(**inputs, **(settings | options))[:, inputs["input_ids"].shape[1] :]


def count_different(job: Job, what: str, given: torch.Tensor, expected: torch.Tensor):
    """Check that tokens are the same."""
    job.check(f"{what}, tokens that differ", (given != expected).sum().item(), 0)


def cache_of_generate(job: Job):
    """A static cache and a session give the answers of a dynamic cache, in float32."""
    model, batch = nano_vlm(job.device), nano_inputs(*ROWS).to(job.device)
    expected = answers_of(model, batch)
    static = job.attempt(
        "static", lambda: answers_of(model, batch, cache_implementation="static", disable_compile=True)
    )
    if static is not None:
        count_different(job, "static cache against dynamic", static, expected)

    def session():
        processor = AutoProcessor.from_pretrained(nano_path("spa3-vlm-nano"))
        scene = SceneSession(model, processor, photos(4, *NANO_SIZE, 0))
        given = scene.generate([QUESTIONS[0]], max_new_tokens=16, min_new_tokens=16, do_sample=False)
        count_different(job, "session against a fresh call", given[0], expected[0])

    job.attempt("session", session)
    model.to(torch.bfloat16)
    half = answers_of(model, batch)
    job.note(tokens_that_bfloat16_changes=(half != expected).sum().item(), tokens=expected.numel())


def gradients(job: Job):
    """Gradients of both trainings: device against CPU in float32, and finite and close in bfloat16."""

    def pretraining(device, dtype, autocast=False):
        model = nano_spa3r(device, dtype).train()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
            model(job.views(2, 4, *NANO_SIZE).to(device), num_context_views=2).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    def tuning(device, dtype, autocast=False):
        model = nano_vlm(device, dtype).train()
        model.freeze_encoders()
        inputs = nano_inputs(0, 1).to(device)
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        labels = labels.masked_fill(labels == model.config.image_token_id, -100)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
            model(**inputs, labels=labels).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    for name, run in {"pre-training": pretraining, "tuning": tuning}.items():

        def compare(name=name, run=run):
            expected = run("cpu", torch.float32)
            job.check(
                f"{name}, float32, device against CPU", difference(run(job.device, torch.float32), expected), 1e-3
            )
            for precision, arguments in {
                "bfloat16": (torch.bfloat16,),
                "bfloat16 by autocast": (torch.float32, True),
            }.items():
                given = run(job.device, *arguments)
                bad = [name for name, gradient in given.items() if not gradient.isfinite().all()]
                job.check(f"{name}, {precision}, gradients that are not finite", len(bad), 0)
                job.check(f"{name}, {precision} against float32", difference(given, expected), 0.2)

        job.attempt(name, compare)


def collect_synchronizations(job: Job, function: Callable) -> list[str]:
    """Lines of this package at which a function makes the host wait for the device, and how often each does."""
    places: Counter = Counter()

    def collect(message, category, filename, lineno, file=None, line=None):
        if "called a synchronizing" not in str(message):
            return
        stack = [frame for frame in traceback.extract_stack() if "warnings" not in frame.filename]
        ours = [frame for frame in stack if in_package(frame.filename)]
        last = stack[-2] if len(stack) > 1 else stack[-1]
        place = " < ".join(f"{short(frame.filename)}:{frame.lineno}" for frame in reversed(ours[-4:]))
        places[f"{place or 'outside the package'} ({short(last.filename)}:{last.lineno} {last.line})"] += 1

    function()
    job.synchronize()
    if not job.on_gpu:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = collect
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{count} x {place}" for place, count in places.most_common()]


def in_package(file: str) -> bool:
    return any(f"/{part}/" in file for part in ("modeling_spa3r", "configuration", "trainers"))


def short(file: str) -> str:
    return "/".join(Path(file).parts[-2:])


def synchronizations(job: Job):
    """Where the hot paths make the host wait, after a warm-up: nowhere in VGGT and in a step of pre-training."""
    spa3r, views = nano_spa3r(job.device), job.views(2, 6, *NANO_SIZE)
    vlm, inputs = nano_vlm(job.device), nano_inputs(0).to(job.device)
    trained = [parameter for parameter in spa3r.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step():
        with torch.autocast(job.device.type, torch.bfloat16):
            loss = spa3r(views, num_context_views=3).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def tune():
        vlm(**inputs, labels=inputs["input_ids"]).loss.backward()

    paths = {
        "VGGTModel": (lambda: spa3r.model.vggt(views, num_context_views=3), 0),
        "Spa3RModel": (lambda: spa3r.model(views), 1),
        "a step of pre-training": (step, 0),
        # Of 4 images. Most are Qwen2.5-VL's, whose vision tower reads sizes in each layer.
        "a step of tuning": (tune, 40),
        "8 new tokens": (lambda: vlm.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False), 60),
    }
    for name, (function, limit) in paths.items():
        places = job.attempt(name, lambda function=function: collect_synchronizations(job, function))
        if places is not None:
            job.note(**{name: places})
            job.check(f"{name}, times that the host waits", sum(int(each.split(" x ")[0]) for each in places), limit)


def cuda_graphs(job: Job):
    """A forward pass of VGGT and of Spa3R's encoder, captured as a CUDA graph and replayed on other views."""
    if not job.on_gpu:
        job.note(skipped="graphs are CUDA's")
        return
    spa3r = nano_spa3r(job.device)
    paths = {
        "VGGTModel": lambda views: spa3r.model.vggt(views, num_context_views=3).patch_tokens,
        "encoder": lambda views: spa3r.model.encode(spa3r.model.vggt(views).patch_tokens, (6, 8)),
    }
    for name, function in paths.items():

        def capture(name=name, function=function):
            views, others = (job.views(2, 6, *NANO_SIZE, seed) for seed in (0, 1))
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                function(views)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = function(views)
            views.copy_(others)
            graph.replay()
            job.check(f"{name}, replayed against run", difference(output, function(others)), 1e-5)

        with torch.no_grad():
            job.attempt(name, capture)


@torch.no_grad()
def full_size(job: Job):
    """VGGT-1B and Spa3R at full size, weights random: device against CPU in float32, and bfloat16 against float32."""
    model = job.build(lambda: Spa3RModel(base_config(job)))
    views = job.views(1, 8, *view_size(job))
    expected = {"features": model.vggt(views).patch_tokens, "latents": model(views).latents}
    few = model.vggt(views[:, :2]).patch_tokens
    half = copy.deepcopy(model).to(torch.bfloat16)
    given = {"features": half.vggt(views).patch_tokens, "latents": half(views).latents}
    for name in given:
        job.check(f"{name}, bfloat16 against float32", difference(given[name], expected[name]), 0.1)
    with torch.autocast(job.device.type, torch.bfloat16):
        given = {"features": model.vggt(views).patch_tokens, "latents": model(views).latents}
    for name in given:
        job.check(f"{name}, bfloat16 by autocast against float32", difference(given[name], expected[name]), 0.1)
    del half, given, expected
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count())
    on_cpu = model.to("cpu").vggt(views[:, :2].cpu()).patch_tokens
    torch.set_num_threads(threads)
    job.check("features of 2 views, float32, device against CPU", difference(few, on_cpu), 1e-4)


def cuda_tests(job: Job):
    """The tests that are marked `cuda`."""
    files = [str(file) for file in (ROOT / "tests").rglob("test_*.py") if "mark.cuda" in file.read_text()]
    if not files or not job.on_gpu:
        job.note(files=files)
        return
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=80)
    job.note(files=files, summary=done.stdout[-4000:])
    # 5: none is marked.
    job.check("exit status of pytest", 0 if done.returncode == 5 else done.returncode, 0)
