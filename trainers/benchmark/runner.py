"""Asking a model all questions of a benchmark: each scene is seen once, and nothing that was answered is lost.

Questions about the same images are answered together, from the keys and values of these (`SceneSession`), in batches
that follow from the benchmark alone. So the answers depend neither on the number of processes nor on whether, and how
often, the run was killed: a batch of which an answer is missing is asked again as a whole.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import PIL.Image
from accelerate import PartialState
from tqdm import tqdm
from transformers import ProcessorMixin

from ...data_scripts.benchmarks.protocol import Protocol
from ...data_scripts.benchmarks.reader import Benchmark, BenchmarkQuestion
from ...data_scripts.common.files import write_text
from ...data_scripts.common.processes import load_ahead
from ...data_scripts.common.videos import read_frames
from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ...modeling_spa3r.spa3_vlm.scene_session import SceneSession

__all__ = ["Answers", "Scene", "ask_all", "plan_scenes"]

# Greedy; what else a checkpoint says of generation, such as a penalty of repetition, stays, as in official evaluation.
# What has no use without sampling is taken away, as the library would warn of it.
GREEDY = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


@dataclass(frozen=True)
class Scene:
    """What is seen at once, and all that is asked about it.

    Args:
        media (`str`): The images; see `BenchmarkQuestion`.
        batches (`tuple`): Questions that are answered together.
    """

    media: str
    batches: tuple[tuple[BenchmarkQuestion, ...], ...]


def plan_scenes(questions: Sequence[BenchmarkQuestion], batch_size: int) -> list[Scene]:
    """Bring questions about the same images together, in the order in which the images come first.

    Args:
        questions (`Sequence[BenchmarkQuestion]`): All that are to be answered.
        batch_size (`int`): Most questions that are answered together.
    """
    grouped: dict[str, list[BenchmarkQuestion]] = {}
    for question in questions:
        grouped.setdefault(question.media, []).append(question)
    return [
        Scene(media, tuple(tuple(asked[start : start + batch_size]) for start in range(0, len(asked), batch_size)))
        for media, asked in grouped.items()
    ]


class Answers:
    """Answers in a folder, one line of JSON each, appended by any number of processes.

    Each process has a file of its own. Of what a killed process left, the last line may be cut; it is passed over.
    Lines are ASCII: what a model answers may hold characters that end lines, or half of a character.

    Args:
        folder (`Path`): Of the run.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.whole = folder / "predictions.jsonl"

    def read(self) -> dict[str, dict[str, str]]:
        """All answers by the ids of their questions: `prediction`, or `unreadable` with the reason."""
        answers = {}
        for file in (self.whole, *sorted(self.folder.glob("predictions-*.jsonl"))):
            for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
                try:
                    answer = json.loads(line)
                except json.JSONDecodeError:
                    continue
                answers[answer.pop("id")] = answer
        return answers

    def append(self, process_index: int, answers: Mapping[str, Mapping[str, str]]):
        """Keep the answers of a batch."""
        lines = [json.dumps({"id": name, **answer}) + "\n" for name, answer in answers.items()]
        with (self.folder / f"predictions-{process_index:05d}.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    def bring_together(self, questions: Sequence[BenchmarkQuestion]) -> dict[str, dict[str, str]]:
        """Put all answers into one file in the order of the questions; no process may append meanwhile.

        Answers to others, whose images may have been there before, are kept behind them, but not given back.
        """
        answers = self.read()
        known = {question.id: answers.pop(question.id) for question in questions if question.id in answers}
        lines = [json.dumps({"id": name, **answer}) + "\n" for name, answer in (known | answers).items()]
        write_text(self.whole, "".join(lines))
        for file in self.folder.glob("predictions-*.jsonl"):
            file.unlink()
        return known


def ask_all(
    model: Spa3VLMForConditionalGeneration,
    processor: ProcessorMixin,
    benchmark: Benchmark,
    questions: Sequence[BenchmarkQuestion],
    protocol: Protocol,
    answers: Answers,
    num_frames: int,
    batch_size: int,
    retry_unreadable: bool = True,
) -> dict[str, dict[str, str]]:
    """Ask what was not answered yet; every process must call it, and takes its share of the scenes.

    Args:
        model (`Spa3VLMForConditionalGeneration`): On the device of this process, in eval mode.
        processor (`ProcessorMixin`): Its processor.
        benchmark (`Benchmark`): Where images are.
        questions (`Sequence[BenchmarkQuestion]`): Questions of it.
        protocol (`Protocol`): How they are worded, and how long answers may be.
        answers (`Answers`): Where answers are kept.
        num_frames (`int`): Frames of a video, spread evenly.
        batch_size (`int`): Most questions about a scene that are answered together.
        retry_unreadable (`bool`, *optional*, defaults to `True`): Try images again that could not be read before.

    Returns:
        `dict`: Answers by the ids of the questions, as `Answers.read` gives them.
    """
    state = PartialState()
    with state.main_process_first():
        if state.is_main_process:
            answers.bring_together(questions)
        done = answers.read()
    if retry_unreadable:
        done = {name: answer for name, answer in done.items() if "prediction" in answer}
    scenes = [scene for scene in map(partial(_left_of, done), plan_scenes(questions, batch_size)) if scene.batches]
    state.wait_for_everyone()  # all have read before anyone appends
    own = scenes[state.process_index :: state.num_processes]
    progress = tqdm(
        total=sum(len(batch) for scene in own for batch in scene.batches),
        desc=f"Asking {benchmark.name}",
        unit="question",
        disable=not state.is_local_main_process,
    )
    load = partial(benchmark.load_images, num_frames=num_frames, read_video=read_frames)
    for scene, images in _with_images(own, load):
        if isinstance(images, ValueError):  # all others are asked first
            given = ({question.id: {"unreadable": str(images)} for question in batch} for batch in scene.batches)
        else:
            given = _answer_scene(model, processor, scene, images, protocol)
        for batch in given:
            answers.append(state.process_index, batch)
            progress.update(len(batch))
    progress.close()
    state.wait_for_everyone()
    with state.main_process_first():
        return answers.bring_together(questions) if state.is_main_process else answers.read()


def _left_of(done: Mapping[str, Mapping], scene: Scene) -> Scene:
    """The batches of a scene of which an answer is missing."""
    return Scene(scene.media, tuple(batch for batch in scene.batches if any(each.id not in done for each in batch)))


def _with_images(
    scenes: Sequence[Scene], load: Callable[[str], list[PIL.Image.Image]]
) -> Iterator[tuple[Scene, list[PIL.Image.Image] | ValueError]]:
    """Scenes with their images, or why these cannot be read; the next ones are decoded meanwhile."""
    for scene, loading in load_ahead(lambda scene: load(scene.media), scenes):
        error = loading.exception()
        yield scene, error if isinstance(error, ValueError) else loading.result()


def _answer_scene(
    model: Spa3VLMForConditionalGeneration,
    processor: ProcessorMixin,
    scene: Scene,
    images: Sequence[PIL.Image.Image],
    protocol: Protocol,
) -> Iterator[dict[str, dict[str, str]]]:
    """Answers to all that is asked about some images, batch by batch, as the tokenizer gives them."""
    try:
        session = SceneSession(model, processor, images)
    except ValueError as error:  # such as an image of one row of pixels; `--skip-missing` leaves it out, too
        yield {question.id: {"unreadable": f"{scene.media}: {error}"} for batch in scene.batches for question in batch}
        return
    for batch in scene.batches:
        prompts = [protocol.prompt(question.record) for question in batch]
        tokens = session.generate(prompts, max_new_tokens=protocol.max_new_tokens, **GREEDY)
        texts = processor.batch_decode(tokens, skip_special_tokens=True)
        yield {question.id: {"prediction": text} for question, text in zip(batch, texts, strict=True)}
