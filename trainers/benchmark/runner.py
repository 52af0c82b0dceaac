"""Ask a model all questions of a benchmark. Each scene is encoded once, and a killed run keeps its answers.

Questions about the same images are answered together, from the cached keys and values of these images
(`SceneSession`), in batches that depend on the benchmark alone. A batch that lacks an answer is asked again as a
whole. So answers do not depend on the number of processes, or on interruptions.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import PIL.Image
from accelerate import PartialState
from tqdm import tqdm
from transformers import ProcessorMixin

from ...data_scripts.benchmarks.protocol import Protocol
from ...data_scripts.benchmarks.reader import BenchmarkData, BenchmarkQuestion
from ...data_scripts.common.processes import load_ahead
from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ...modeling_spa3r.spa3_vlm.scene_session import SceneSession
from .answers import Answers
from .conversations import answer_conversations

# Greedy. Other generation settings of a checkpoint, such as a repetition penalty, stay, as in the official evaluation.
# Sampling settings are unset, because the library warns about them without sampling.
GREEDY = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


@dataclass(frozen=True)
class Scene:
    """Images and all questions about them.

    Args:
        media (`str`): Key of the images; see `BenchmarkQuestion`.
        batches (`tuple`): Questions that are answered together.
    """

    media: str
    batches: tuple[tuple[BenchmarkQuestion, ...], ...]


def plan_scenes(questions: Sequence[BenchmarkQuestion], batch_size: int) -> list[Scene]:
    """Group questions by their images, in the order of the first question about each.

    Args:
        questions (`Sequence[BenchmarkQuestion]`): All questions of the run.
        batch_size (`int`): Most questions that are answered together.
    """
    grouped: dict[str, list[BenchmarkQuestion]] = {}
    for question in questions:
        grouped.setdefault(question.media, []).append(question)
    return [
        Scene(media, tuple(tuple(asked[start : start + batch_size]) for start in range(0, len(asked), batch_size)))
        for media, asked in grouped.items()
    ]


def ask_all(
    model: Spa3VLMForConditionalGeneration,
    processor: ProcessorMixin,
    benchmark: BenchmarkData,
    questions: Sequence[BenchmarkQuestion],
    protocol: Protocol,
    answers: Answers,
    num_frames: int,
    batch_size: int,
    retry_unreadable: bool = True,
    without_images: bool = False,
) -> dict[str, dict[str, str]]:
    """Ask the questions that have no answer yet. Every process must call it, and takes its share of the scenes.

    Args:
        model (`Spa3VLMForConditionalGeneration`): Model on the device of this process, in eval mode.
        processor (`ProcessorMixin`): Its processor.
        benchmark (`BenchmarkData`): Source of the images.
        questions (`Sequence[BenchmarkQuestion]`): Questions of this benchmark.
        protocol (`Protocol`): Gives the prompts and the most tokens of an answer.
        answers (`Answers`): Storage of the answers.
        num_frames (`int`): Number of frames of a video, spread evenly.
        batch_size (`int`): Most questions about a scene that are answered together.
        retry_unreadable (`bool`, *optional*, defaults to `True`): Whether to try again images that failed before.
        without_images (`bool`, *optional*, defaults to `False`): Whether to show the text of each question alone.

    Returns:
        `dict`: Answers by question id, as of `Answers.read`.
    """
    state = PartialState()
    with state.main_process_first():
        if state.is_main_process:
            answers.merge(questions)
        done = answers.read()
    if retry_unreadable:
        done = {name: answer for name, answer in done.items() if "prediction" in answer}
    scenes = [scene for scene in map(partial(_unanswered, done), plan_scenes(questions, batch_size)) if scene.batches]
    state.wait_for_everyone()  # no process appends before all have read
    own = scenes[state.process_index :: state.num_processes]
    progress = tqdm(
        total=sum(len(batch) for scene in own for batch in scene.batches),
        desc=f"Asking {benchmark.name}",
        unit="question",
        disable=not state.is_local_main_process,
    )

    def load(scene: Scene) -> list[PIL.Image.Image]:
        return [] if without_images else benchmark.load_images(scene.media, num_frames)

    for scene, loading in load_ahead(load, own):
        for batch in _answer_scene(model, processor, scene, loading, protocol):
            answers.append(state.process_index, batch)
            progress.update(len(batch))
    progress.close()
    state.wait_for_everyone()
    with state.main_process_first():
        return answers.merge(questions) if state.is_main_process else answers.read()


def _unanswered(done: Mapping[str, Mapping], scene: Scene) -> Scene:
    """Keep the batches of a scene that lack an answer."""
    return Scene(scene.media, tuple(batch for batch in scene.batches if any(each.id not in done for each in batch)))


def _answer_scene(
    model: Spa3VLMForConditionalGeneration,
    processor: ProcessorMixin,
    scene: Scene,
    loading: Future[list[PIL.Image.Image]],
    protocol: Protocol,
) -> Iterator[dict[str, dict[str, str]]]:
    """Yield the answers to each batch about a scene, or why its images cannot be read."""
    try:
        images = loading.result()
    except ValueError as error:
        yield from _mark_unreadable(scene, str(error))
        return
    if not images:
        for batch in scene.batches:
            texts = answer_text(model, processor, [protocol.prompt(question.record) for question in batch], protocol)
            yield {question.id: {"prediction": text} for question, text in zip(batch, texts, strict=True)}
        return
    try:
        session = SceneSession(model, processor, images)
    except ValueError as error:  # for example an image that is one pixel high
        yield from _mark_unreadable(scene, f"{scene.media}: {error}")
        return
    for batch in scene.batches:
        prompts = [protocol.prompt(question.record) for question in batch]
        tokens = session.generate(prompts, max_new_tokens=protocol.max_new_tokens, **GREEDY)
        texts = processor.batch_decode(tokens, skip_special_tokens=True)
        yield {question.id: {"prediction": text} for question, text in zip(batch, texts, strict=True)}


def _mark_unreadable(scene: Scene, reason: str) -> Iterator[dict[str, dict[str, str]]]:
    return ({question.id: {"unreadable": reason} for question in batch} for batch in scene.batches)


def answer_text(
    model: Spa3VLMForConditionalGeneration, processor: ProcessorMixin, prompts: Sequence[str], protocol: Protocol
) -> list[str]:
    """Answer prompts without images, which shows how much their words give away."""
    conversations = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in prompts]
    tokens = answer_conversations(model, processor, conversations, max_new_tokens=protocol.max_new_tokens, **GREEDY)
    return processor.batch_decode(tokens, skip_special_tokens=True)
