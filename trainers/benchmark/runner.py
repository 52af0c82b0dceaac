"""Ask a model all questions of a benchmark. Each scene is encoded once, and a killed run keeps its answers.

Questions are answered together, from the cached keys and values of their images (`SceneSession`): those about the same
images, and those about the images next to them in the benchmark as long as there is room. These batches depend on the
benchmark alone, and one that lacks an answer is asked again as a whole. So answers do not depend on the number of
processes, or on interruptions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice

import PIL.Image
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm
from transformers import ProcessorMixin

from ...data_scripts.benchmarks.protocol import Protocol
from ...data_scripts.benchmarks.reader import BenchmarkData, BenchmarkQuestion
from ...data_scripts.common.processes import load_ahead
from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ...modeling_spa3r.spa3_vlm.scene_batches import advance, begin
from ...modeling_spa3r.spa3_vlm.scene_session import SceneSession, scene_conversation, tokenize_after_prefix
from .answers import Answers
from .conversations import answer_conversations

# Greedy. Other generation settings of a checkpoint, such as a repetition penalty, stay, as in the official evaluation.
# Sampling settings are unset, because the library warns about them without sampling.
GREEDY = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
# Most tokens in the rows of a `generate` for several scenes, each row as long as the longest scene. Their keys and
# values take 0.6 GB in a 4b, once in the scenes and once in the batch. So 16 scenes of one to three images share one,
# while scenes of many frames are answered one by one. It is a constant, because answers in half precision would
# otherwise depend on the free memory of a device.
MAX_SHARED_TOKENS = 16_384

# Batches of questions that one process asks, so that their images are encoded once.
Group = tuple[tuple[BenchmarkQuestion, ...], ...]


def plan_groups(questions: Sequence[BenchmarkQuestion], batch_size: int) -> list[Group]:
    """Plan which questions are answered together.

    Scenes, which are questions about the same images, stay in the order of their first questions. Neighbours share a
    batch while it has room for all their questions. A scene with too many for a batch has batches of its own.

    Args:
        questions (`Sequence[BenchmarkQuestion]`): All questions of the benchmark.
        batch_size (`int`): Most questions that are answered together.

    Returns:
        `list[Group]`: Groups of one batch about one or several scenes, or of several batches about one scene.
    """
    scenes: dict[str, list[BenchmarkQuestion]] = {}
    for question in questions:
        scenes.setdefault(question.media, []).append(question)
    groups: list[list[BenchmarkQuestion]] = []
    for scene in scenes.values():
        if groups and len(groups[-1]) + len(scene) <= batch_size:
            groups[-1] += scene
        else:
            groups.append(scene)
    return [
        tuple(tuple(group[start : start + batch_size]) for start in range(0, len(group), batch_size))
        for group in groups
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
    """Ask the questions that have no answer yet. Every process must call it, and takes its share of the groups.

    Args:
        model (`Spa3VLMForConditionalGeneration`): Model on the device of this process, in eval mode.
        processor (`ProcessorMixin`): Its processor.
        benchmark (`BenchmarkData`): Source of the images; all its questions decide which ones are answered together.
        questions (`Sequence[BenchmarkQuestion]`): Those of its questions that are asked.
        protocol (`Protocol`): Gives the prompts and the most tokens of an answer.
        answers (`Answers`): Storage of the answers.
        num_frames (`int`): Number of frames of a video, spread evenly.
        batch_size (`int`): Most questions that are answered together.
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
    groups = _unanswered(plan_groups(benchmark.questions, batch_size), questions, done)
    state.wait_for_everyone()  # no process appends before all have read
    own = groups[state.process_index :: state.num_processes]
    progress = tqdm(
        total=sum(len(batch) for group in own for batch in group),
        desc=f"Asking {benchmark.name}",
        unit="question",
        disable=not state.is_local_main_process,
    )
    if without_images:
        answered = _answer_texts(model, processor, own, protocol)
    else:
        answered = _answer_scenes(model, processor, benchmark, own, protocol, num_frames)
    for batch in answered:
        answers.append(state.process_index, batch)
        progress.update(len(batch))
    progress.close()
    state.wait_for_everyone()
    with state.main_process_first():
        return answers.merge(questions) if state.is_main_process else answers.read()


def _unanswered(
    groups: Sequence[Group], questions: Sequence[BenchmarkQuestion], done: Mapping[str, Mapping]
) -> list[Group]:
    """Keep the batches that lack an answer, and of these the questions that are asked."""
    asked, left = {question.id for question in questions}, []
    for group in groups:
        batches = (tuple(question for question in batch if question.id in asked) for batch in group)
        left.append(tuple(batch for batch in batches if any(question.id not in done for question in batch)))
    return [group for group in left if group]


def _answer_texts(
    model: Spa3VLMForConditionalGeneration, processor: ProcessorMixin, groups: Sequence[Group], protocol: Protocol
) -> Iterator[dict[str, dict[str, str]]]:
    """Yield answers without images, which show how much the words of the questions give away."""
    for batch in (batch for group in groups for batch in group):
        prompts = [protocol.prompt(question.record) for question in batch]
        conversations = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in prompts]
        tokens = answer_conversations(
            model, processor, conversations, max_new_tokens=protocol.max_new_tokens, **GREEDY
        )
        yield _read_answers(processor, batch, tokens)


def _answer_scenes(
    model: Spa3VLMForConditionalGeneration,
    processor: ProcessorMixin,
    benchmark: BenchmarkData,
    groups: Sequence[Group],
    protocol: Protocol,
    num_frames: int,
) -> Iterator[dict[str, dict[str, str]]]:
    """Yield answers as they come, or why the images of a scene cannot be read."""
    scenes = [list(dict.fromkeys(question.media for batch in group for question in batch)) for group in groups]

    def load(media: str) -> list[PIL.Image.Image]:
        return benchmark.load_images(media, num_frames)

    loads = load_ahead(load, [media for group in scenes for media in group])
    for group, media in zip(groups, scenes, strict=True):
        yield from _answer_group(model, processor, group, islice(loads, len(media)), protocol)


def _answer_group(
    model: Spa3VLMForConditionalGeneration,
    processor: ProcessorMixin,
    group: Group,
    loads: Iterable[tuple[str, Future[list[PIL.Image.Image]]]],
    protocol: Protocol,
) -> Iterator[dict[str, dict[str, str]]]:
    """Yield the answers to questions of a group, or why the images of a scene cannot be read."""
    waiting: list[tuple[SceneSession, BenchmarkQuestion]] = []
    for media, loading in loads:
        batches = [[question for question in batch if question.media == media] for batch in group]
        try:
            session = _encode(model, processor, media, loading)
        except ValueError as error:
            yield {question.id: {"unreadable": str(error)} for batch in batches for question in batch}
            continue
        for batch in batches:
            rows = [*waiting, *((session, question) for question in batch)]
            is_too_much = len(batches) > 1 or _count_tokens(rows) > MAX_SHARED_TOKENS
            if waiting and is_too_much:
                yield _answer(model, processor, waiting, protocol)
                rows = rows[len(waiting) :]
            waiting = rows
    if waiting:
        yield _answer(model, processor, waiting, protocol)


def _encode(
    model: Spa3VLMForConditionalGeneration,
    processor: ProcessorMixin,
    media: str,
    loading: Future[list[PIL.Image.Image]],
) -> SceneSession:
    images = loading.result()
    try:
        return SceneSession(model, processor, images)
    except ValueError as error:  # for example an image that is one pixel high
        raise ValueError(f"{media}: {error}") from error


def _count_tokens(rows: Sequence[tuple[SceneSession, BenchmarkQuestion]]) -> int:
    """Tokens before the questions in a batch of these rows, with their padding."""
    return len(rows) * max(session.prefix_inputs["input_ids"].shape[1] for session, _ in rows)


def _answer(
    model: Spa3VLMForConditionalGeneration,
    processor: ProcessorMixin,
    rows: Sequence[tuple[SceneSession, BenchmarkQuestion]],
    protocol: Protocol,
) -> dict[str, dict[str, str]]:
    """Answer questions about scenes in one call of `generate`."""
    sessions, questions = zip(*rows, strict=True)
    texts = []
    for session, question in rows:
        conversation = scene_conversation(session.num_images, protocol.prompt(question.record))
        texts.append(tokenize_after_prefix(processor, session.prefix, conversation))
    _, tokens = advance(model, begin(model, sessions, texts), protocol.max_new_tokens, GREEDY)
    return _read_answers(processor, questions, tokens)


def _read_answers(
    processor: ProcessorMixin, questions: Sequence[BenchmarkQuestion], tokens: Tensor | list[list[int]]
) -> dict[str, dict[str, str]]:
    texts = processor.batch_decode(tokens, skip_special_tokens=True)
    return {question.id: {"prediction": text} for question, text in zip(questions, texts, strict=True)}
