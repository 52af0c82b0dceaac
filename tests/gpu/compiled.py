"""torch.compile: breaks of the models' graphs, and whether compiled models compute the same."""

import torch
from gpu.correctness import ROWS, answers_of, count_different
from gpu.figures_spa3_vlm import answer
from gpu.job import Job, difference
from gpu.models import NANO_SIZE, full_inputs, full_processor, full_vlm, nano_inputs, nano_spa3r, nano_vlm


def models_and_calls(job: Job) -> dict:
    """The shipped models, and a call of each; what comes out is compared."""
    spa3r, views = nano_spa3r(job.device), job.views(2, 6, *NANO_SIZE)
    return {
        "VGGTModel": (spa3r.model.vggt, (views, 3), lambda output: output.patch_tokens),
        "Spa3RModel": (spa3r.model, (views,), lambda output: output.latents),
        "Spa3RForPreTraining": (spa3r, (views, 3), lambda output: output.predicted_features),
    }


def graph_breaks(job: Job):
    """How often the graph of each model breaks, and why."""
    for name, (model, inputs, _) in models_and_calls(job).items():

        def explain(name=name, model=model, inputs=inputs):
            torch._dynamo.reset()
            found = torch._dynamo.explain(model)(*inputs)
            reasons = [
                f"{place.filename.split('/')[-1]}:{place.lineno} {place.line}: {reason.reason}"[:300]
                for reason in found.break_reasons
                for place in reason.user_stack[-1:]
            ]
            job.note(**{name: {"graphs": found.graph_count, "breaks": found.graph_break_count, "reasons": reasons}})
            job.check(f"{name}, breaks of the graph", found.graph_break_count, 0)

        job.attempt(name, explain)


@torch.no_grad()
def compiled_outputs(job: Job):
    """Outputs of whole models compiled, against the same not compiled, in float32."""
    for name, (model, inputs, take) in models_and_calls(job).items():

        def compare(name=name, model=model, inputs=inputs, take=take):
            expected = take(model(*inputs))
            torch._dynamo.reset()
            compiled = torch.compile(model, **({} if job.on_gpu else {"backend": "eager"}))
            seconds = job.seconds(lambda: compiled(*inputs))
            job.note(**{f"{name}, seconds to compile": seconds})
            job.check(f"{name}, compiled against not", difference(take(compiled(*inputs)), expected), 1e-4)

        job.attempt(name, compare)


def compiled_generate(job: Job):
    """`generate` with a static cache, which transformers compiles: answers of the shipped model, tokens a second."""
    if not job.on_gpu:
        job.note(skipped="transformers compiles on accelerators alone")
        return

    def compare():
        model, batch = nano_vlm(job.device), nano_inputs(*ROWS).to(job.device)
        given = answers_of(model, batch, cache_implementation="static")
        count_different(job, "compiled with a static cache", given, answers_of(model, batch))

    job.attempt("the shipped model", compare)
    model = full_vlm(job)
    inputs, num_tokens = full_inputs(job, full_processor(job)), 128
    compile_seconds = job.seconds(lambda: answer(model, inputs, num_tokens, cache_implementation="static"))
    job.note(seconds_of_first_call=compile_seconds)
    first = job.median_seconds(lambda: answer(model, inputs, 2, cache_implementation="static"), repeats=2)
    seconds = job.seconds(lambda: answer(model, inputs, num_tokens, cache_implementation="static"))
    job.note(seconds=seconds, tokens_per_second=(num_tokens - 2) / (seconds - first))
