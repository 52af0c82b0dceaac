"""The parts of `make gpu`, most valuable first: where each is, and its seconds on an H100."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A function `module.name(job)` of this folder.

    Args:
        expected (`int`): Seconds that it takes; it is not started with fewer left.
        limit (`int`): Seconds after which it is stopped: a host of slow, shared cores takes three times as long as a
            fast one. What it has noted by then is kept.
    """

    module: str
    name: str
    expected: int
    limit: int


PARTS = {
    part.name: part
    for part in (
        Part("correctness", "cuda_against_cpu", 15, 90),
        Part("correctness", "half_precision", 8, 40),
        Part("correctness", "tf32", 5, 30),
        Part("correctness", "attention_kernels", 5, 30),
        Part("correctness", "batches", 8, 40),
        Part("correctness", "cache_of_generate", 8, 40),
        Part("correctness", "gradients", 20, 120),
        Part("correctness", "synchronizations", 8, 40),
        Part("correctness", "cuda_graphs", 5, 30),
        Part("figures_vggt", "vggt", 20, 90),
        Part("figures_spa3r", "latents", 30, 75),
        Part("figures_spa3r", "pretraining", 20, 60),
        Part("figures_spa3_vlm", "generate", 20, 120),
        Part("figures_spa3_vlm", "questions", 25, 75),
        Part("figures_spa3_vlm", "sft_lora", 30, 120),
        Part("figures_spa3_vlm", "sft_full", 30, 120),
        Part("figures_benchmark", "benchmark", 65, 180),
        Part("figures_vggt", "vggt_compiled", 30, 90),
        Part("correctness", "full_size", 15, 60),
        Part("figures_vggt", "vggt_kernels", 8, 30),
        Part("figures_spa3r", "pretraining_kernels", 10, 40),
        Part("figures_spa3_vlm", "answer_kernels", 15, 50),
        Part("figures_spa3r", "pretraining_variants", 45, 100),
        Part("compiled", "graph_breaks", 20, 60),
        Part("compiled", "compiled_outputs", 30, 90),
        Part("correctness", "cuda_tests", 30, 90),
        Part("compiled", "compiled_generate", 45, 100),
    )
}
