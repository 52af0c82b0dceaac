"""Spa3-VLM-4B of random weights: tokens a second, many questions of one scene, and steps of instruction tuning."""

import statistics

import torch
from gpu.figures_vggt import longest_kernels
from gpu.job import Job
from gpu.models import full_inputs, full_photos, full_processor, full_vlm
from tiny_spa3_vlm import conversation, prepare
from torch import Tensor, nn
from transformers import BatchFeature

from spa3r import SceneSession, Spa3VLMForConditionalGeneration
from spa3r.trainers.runs.recipes import read_recipe

OBJECTS = ("chair", "table", "sofa", "lamp", "shelf", "bed")
ASKINGS = ("How many {}s are there?", "How long is the {}, in cm?", "Is the {} left of the door?")
# Of each of 18 answers.
NEW_TOKENS = 8
# The answer of a record, in tokens.
ANSWER_TOKENS = 32


def answer(model: Spa3VLMForConditionalGeneration, inputs: BatchFeature, num_tokens: int, **options) -> Tensor:
    settings = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}
    return model.generate(**inputs, **(settings | options))[:, inputs["input_ids"].shape[1] :]


def generate(job: Job):
    """Time to the first token of an answer about 8 images, encoding included, and tokens a second after it."""
    model, processor = full_vlm(job), full_processor(job)
    inputs, num_tokens = full_inputs(job, processor), 8 if job.is_tiny else 128
    geometry = {name: inputs[name] for name in ("pixel_values_geometry", "geometry_sizes", "num_views")}
    job.note(prompt_tokens=inputs["input_ids"].shape[1], new_tokens=num_tokens)
    job.note(seconds_to_prepare=job.median_seconds(lambda: full_inputs(job, processor)))
    job.note(seconds_to_encode_scene=job.median_seconds(lambda: model.encode_scene(**geometry)))
    first = job.median_seconds(lambda: answer(model, inputs, 1))
    job.note(seconds_to_first_token=first, peak_gb=job.peak_gb(lambda: answer(model, inputs, 1)))
    seconds = job.median_seconds(lambda: answer(model, inputs, num_tokens), repeats=2, warm_up=0)
    job.note(seconds=seconds, tokens_per_second=(num_tokens - 1) / (seconds - first))
    if job.on_gpu:
        job.note(weights_gb=sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9)


def answer_kernels(job: Job):
    """Which kernels the time to the first token goes to, and that of 16 more tokens."""
    model = full_vlm(job)
    inputs = full_inputs(job, full_processor(job))
    job.note(first_token=longest_kernels(job, lambda: answer(model, inputs, 1)))
    job.note(with_16_more=longest_kernels(job, lambda: answer(model, inputs, 17)))


def questions(job: Job):
    """18 questions about one scene of 8 images: fresh calls, a session one by one, and in one batch."""
    model, processor, views = full_vlm(job), full_processor(job), full_photos(job)
    texts = [asking.format(name) for asking in ASKINGS for name in OBJECTS]
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    fresh, singles, sessions = [], [], []

    def ask_anew(text: str):
        inputs = prepare(processor, conversation(views, text)).to(job.device)
        fresh.append(answer(model, inputs, NEW_TOKENS))

    job.seconds(lambda: ask_anew(texts[0]))
    fresh.clear()
    fresh_seconds = sum(job.seconds(lambda text=text: ask_anew(text)) for text in texts)
    job.note(questions=len(texts), seconds_fresh=fresh_seconds)
    seeing = job.seconds(lambda: sessions.append(SceneSession(model, processor, views)))
    (session,) = sessions
    session.generate(texts[:1], **settings)
    in_turn = job.seconds(lambda: singles.extend(session.generate([text], **settings) for text in texts))
    batch = session.generate(texts, **settings)
    at_once = job.median_seconds(lambda: session.generate(texts, **settings), repeats=2, warm_up=0)
    job.note(seconds_to_see=seeing, seconds_one_by_one=seeing + in_turn, seconds_batch=seeing + at_once)
    fresh_tokens = torch.cat(fresh)
    # Half precision rounds differently, so that some tokens may differ: a figure, not a check.
    job.note(
        tokens=fresh_tokens.numel(),
        tokens_that_differ_one_by_one=(torch.cat(singles) != fresh_tokens).sum().item(),
        tokens_that_differ_in_batch=(batch != fresh_tokens).sum().item(),
    )


def record(job: Job) -> BatchFeature:
    """A record of 8 images; its answer is the last tokens."""
    inputs = full_inputs(job, full_processor(job))
    labels = inputs["input_ids"].clone()
    labels[:, :-ANSWER_TOKENS] = -100
    return BatchFeature(dict(inputs) | {"labels": labels})


def measure_steps(job: Job, model: nn.Module, losses: list[Tensor]):
    """Time and memory of steps with activations checkpointed, one record each."""
    inputs = record(job)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
    job.note(weights_gb=weights, trained_millions=sum(p.numel() for p in trained) / 1e6)

    def step():
        with torch.autocast(job.device.type, torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())

    if job.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    # Noted one by one, in case the part is stopped. The first is a warm-up.
    times = []
    for _ in range(2 if job.is_tiny else 4):
        times.append(job.seconds(step))
        job.note(seconds_of_steps=times)
    seconds = statistics.median(times[1:])
    tokens = inputs["input_ids"].numel()
    job.note(seconds=seconds, tokens=tokens, tokens_per_second=tokens / seconds)
    if job.on_gpu:
        job.note(peak_gb=torch.cuda.max_memory_allocated() / 1e9)
    values = [loss.item() for loss in losses]
    job.note(losses=values)
    job.check("losses that are not finite", sum(not torch.tensor(value).isfinite() for value in values), 0)


def trainable_vlm(job: Job) -> Spa3VLMForConditionalGeneration:
    model = full_vlm(job).train()
    model.freeze_encoders()
    model.activation_checkpointing_enable()
    return model


def sft_full(job: Job):
    """A step of the whole language model and the adapter, all in bfloat16."""
    measure_steps(job, trainable_vlm(job), [])


def sft_lora(job: Job):
    """A step with the recipe's LoRA layers and the whole adapter, which are float32."""
    from peft import LoraConfig, get_peft_model

    recipe = read_recipe("spa3-vlm-lora", "sft")
    (target,) = recipe["lora_target_modules"]
    settings = {"r": recipe["lora_r"], "lora_alpha": recipe["lora_alpha"]}
    modules = recipe["lora_modules_to_save"]
    with torch.device(job.device):
        model = get_peft_model(
            trainable_vlm(job), LoraConfig(**settings, target_modules=target, modules_to_save=modules)
        )
    measure_steps(job, model, [])
