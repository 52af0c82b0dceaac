"""Answers questions about many scenes, in one thread that owns the model."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers.utils import logging

from ....modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ....modeling_spa3r.spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor
from ....modeling_spa3r.spa3_vlm.scene_batches import Batch, advance, begin, join, keep
from ....modeling_spa3r.spa3_vlm.scene_session import SceneInputs, SceneSession
from .metrics import Metrics

logger = logging.get_logger(__name__)

# Answers join and leave after so many tokens. With fewer, new ones would start earlier, but each call of `generate`
# costs some milliseconds of its own.
TOKENS_PER_TURN = 4


class Stopped(RuntimeError):
    """The engine ended before the answer did."""


@dataclass(frozen=True)
class Progress:
    """News of an answer: tokens, then why it ended, or the error that ended it."""

    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: Exception | None = None


@dataclass(eq=False)
class Question:
    """A question about a scene, or the last turn of a conversation about it.

    Args:
        key (`str`): Tells scenes apart.
        prepare (`Callable`, *optional*): Prepares the scene if it has left the cache meanwhile.
        scene (`SceneInputs`, *optional*): The prepared scene; `None` if it is in the cache.
        tokens (`list[int]`): The text after the images.
        max_new_tokens (`int`): Most tokens of the answer.
        options (`tuple`): Options of `generate`, as pairs. Questions with equal options are answered together.
        deliver (`Callable`): Takes news; called in the engine's thread, and must return at once.
        deadline (`float`): When nobody waits for the answer any more, as of `time.monotonic`.

    Attributes:
        num_prompt_tokens (`int`): Tokens of scene and text; known with the first news.
        was_cached (`bool`): Whether the scene was in the cache; known with the first news.
    """

    key: str
    prepare: Callable[[], SceneInputs] | None
    scene: SceneInputs | None
    tokens: list[int]
    max_new_tokens: int
    options: tuple
    deliver: Callable[[Progress], None]
    deadline: float
    num_answered: int = 0
    num_prompt_tokens: int = 0
    was_cached: bool = False
    is_cancelled: bool = False

    def cancel(self):
        """Stop the answer after the tokens that are being generated."""
        self.is_cancelled = True

    @property
    def is_wanted(self) -> bool:
        return not self.is_cancelled and time.monotonic() < self.deadline


@dataclass
class Group:
    """Questions with equal options that are being answered, and their texts so far, a row each."""

    questions: list[Question]
    batch: Batch

    @property
    def options(self) -> tuple:
        return self.questions[0].options


class Engine:
    """Encodes scenes, keeps them, and answers questions about different scenes together.

    At most one new scene is encoded in a turn, so that answers that are under way go on. Scenes are not encoded
    together, because a single one fills an accelerator.

    Args:
        model (`Spa3VLMForConditionalGeneration`): Nobody else may use it meanwhile.
        processor (`Spa3VLMProcessor`): Its processor.
        metrics (`Metrics`): Counts what is done.
        max_batch (`int`): Most questions that are answered at the same time.
        cache_bytes (`int`): Scenes are kept up to this size; the least recently used leaves first, the newest stays.
    """

    def __init__(
        self,
        model: Spa3VLMForConditionalGeneration,
        processor: Spa3VLMProcessor,
        metrics: Metrics,
        max_batch: int,
        cache_bytes: int,
    ):
        self.model, self.processor, self.metrics = model, processor, metrics
        self.max_batch, self.cache_bytes = max_batch, cache_bytes
        self.max_tokens = model.config.get_text_config().max_position_embeddings
        ends = model.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])
        self._sessions: OrderedDict[str, SceneSession] = OrderedDict()
        self._groups: list[Group] = []
        self._waiting: list[Question] = []
        self._changed = threading.Condition()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self):
        """Start the thread."""
        self._thread.start()

    def stop(self):
        """End the thread; answers that are under way fail."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether questions are answered."""
        return self._thread.is_alive()

    def has_scene(self, key: str) -> bool:
        """Whether a scene is in the cache now."""
        return key in self._sessions

    def submit(self, question: Question):
        """Ask; the answer comes to `question.deliver`."""
        with self._changed:
            if self._is_stopped:
                raise Stopped("The server is stopping; ask again later.")
            self._waiting.append(question)
            self._changed.notify()

    def _run(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._groups or self._is_stopped)
                if self._is_stopped:
                    break
            self._take_turn()
            self.metrics.waiting.set(len(self._waiting))
            self.metrics.running.set(self._num_running)
        questions = [*self._waiting, *(question for group in self._groups for question in group.questions)]
        self._fail(questions, Stopped("The server is stopping; ask again later."))

    @property
    def _num_running(self) -> int:
        return sum(len(group.questions) for group in self._groups)

    def _take_turn(self):
        """Let questions join, generate some tokens of all answers, and let those leave that are complete."""
        groups = []
        for group in [*self._groups, *self._begin(self._admit())]:
            try:
                group = self._advance(group)
            except Exception as error:
                self._fail(group.questions, error)
            else:
                groups += [group] if group.questions else []
        self._groups = []
        for options in dict.fromkeys(group.options for group in groups):
            same = [group for group in groups if group.options == options]
            questions = [question for group in same for question in group.questions]
            try:
                batch = same[0].batch if len(same) == 1 else join(self.model, [group.batch for group in same])
            except Exception as error:  # memory may run out
                self._fail(questions, error)
            else:
                self._groups.append(Group(questions, batch))

    def _admit(self) -> list[tuple[Question, SceneSession]]:
        """Take questions that wait, the first first, while there is room, and encode at most one scene for them."""
        with self._changed:
            waiting, self._waiting = self._waiting, []
        admitted, later, may_encode = [], [], True
        for question in waiting:
            session = self._sessions.get(question.key)
            if not question.is_wanted:
                continue
            if self._num_running + len(admitted) >= self.max_batch or not (session or may_encode):
                later.append(question)
                continue
            question.was_cached = session is not None
            try:
                may_encode = may_encode and question.was_cached
                session = session or self._encode(question)
                self._check_length(question, session)
            except Exception as error:
                self._fail([question], error)
                continue
            question.scene = question.prepare = None  # images are large
            self._sessions.move_to_end(question.key)
            self.metrics.hits.inc(question.was_cached)
            self.metrics.prompt_tokens.inc(question.num_prompt_tokens)
            admitted.append((question, session))
        with self._changed:
            self._waiting = later + self._waiting
        return admitted

    def _encode(self, question: Question) -> SceneSession:
        """Encode a scene and keep it; others leave to make room."""
        session = SceneSession(self.model, self.processor, question.scene or question.prepare())
        self.metrics.encoded.inc()
        self._sessions[question.key] = session
        sizes = {key: _num_bytes(each) for key, each in self._sessions.items()}
        while len(self._sessions) > 1 and sum(sizes.values()) > self.cache_bytes:
            del sizes[self._sessions.popitem(last=False)[0]]
            self.metrics.evicted.inc()
        self.metrics.scenes.set(len(sizes))
        self.metrics.scene_bytes.set(sum(sizes.values()))
        return session

    def _check_length(self, question: Question, session: SceneSession):
        question.num_prompt_tokens = session.prefix_inputs["input_ids"].shape[1] + len(question.tokens)
        if (total := question.num_prompt_tokens + question.max_new_tokens) > self.max_tokens:
            raise ValueError(
                f"The conversation has {question.num_prompt_tokens:,} tokens, {total:,} with the longest answer, but "
                f"the model takes {self.max_tokens:,}: send fewer images or less text, or a smaller `max_tokens`."
            )

    def _begin(self, admitted: Sequence[tuple[Question, SceneSession]]) -> list[Group]:
        """Groups of new questions."""
        groups = []
        for options in dict.fromkeys(question.options for question, _ in admitted):
            chosen = [pair for pair in admitted if pair[0].options == options]
            questions, sessions = zip(*chosen, strict=True)
            try:
                batch = begin(self.model, sessions, [question.tokens for question in questions])
            except Exception as error:
                self._fail(questions, error)
            else:
                groups.append(Group(list(questions), batch))
        return groups

    def _advance(self, group: Group) -> Group:
        """Generate some tokens of all answers of a group; returns what is left of it."""
        num_tokens = max(question.max_new_tokens - question.num_answered for question in group.questions)
        options = dict(group.options)
        batch, rows = advance(self.model, group.batch, min(num_tokens, TOKENS_PER_TURN), options)
        staying = [
            index
            for index, (question, tokens) in enumerate(zip(group.questions, rows, strict=True))
            if self._deliver(question, tokens) and question.is_wanted
        ]
        if 0 < len(staying) < len(rows):
            batch = keep(self.model, batch, staying)
        return Group([group.questions[index] for index in staying], batch)

    def _deliver(self, question: Question, tokens: list[int]) -> bool:
        """Hand over new tokens of an answer; returns whether it goes on."""
        tokens = tokens[: question.max_new_tokens - question.num_answered]
        end = next((index for index, token in enumerate(tokens) if token in self.ends), None)
        tokens = tokens[:end]
        question.num_answered += len(tokens)
        self.metrics.answer_tokens.inc(len(tokens))
        is_long = question.num_answered == question.max_new_tokens
        reason = "stop" if end is not None else "length" if is_long else None
        question.deliver(Progress(tokens, reason))
        return reason is None

    def _fail(self, questions: Sequence[Question], error: Exception):
        """Report an error to all who wait for these answers; the engine goes on."""
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            self._sessions.clear()
        if not isinstance(error, ValueError | Stopped):
            logger.error(f"{len(questions)} questions failed: {error}", exc_info=error)
        for question in questions:
            question.deliver(Progress(error=error))


def _num_bytes(session: SceneSession) -> int:
    """Memory of a scene on the model's device."""
    tensors = [tensor for layer in session.cache.layers for tensor in (layer.keys, layer.values)]
    tensors += [*session.prefix_inputs.values(), session.image_grid_thw]
    tensors += [] if session.spatial_latents is None else [session.spatial_latents]
    return sum(tensor.nbytes for tensor in tensors)
