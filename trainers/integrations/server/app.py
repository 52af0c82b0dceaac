"""The server's addresses: OpenAI's chat API over an engine, health and metrics."""

import asyncio
import hashlib
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ....data_scripts.common.downloads import is_url
from ....modeling_spa3r.spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor
from ....modeling_spa3r.spa3_vlm.scene_session import (
    SceneInputs,
    prepare_scene,
    scene_conversation,
    scene_prefix,
    tokenize_after_prefix,
)
from .answer_text import AnswerText
from .chat_request import ChatRequest, parse_request
from .engine import Engine, Progress, Question, Stopped
from .errors import ApiError
from .guard import Guard
from .images import ImageLimits, decode_images, read_images

# Images are decoded by so many threads. Each may hold all pixels of one request.
NUM_READERS = 2
# So much of a request that is too large is read and thrown away, as a multiple of the largest allowed.
MAX_IGNORED = 4
# What a proxy calls the status of a request whose client has gone.
CLIENT_GONE = 499


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Args:
        images (`ImageLimits`): Of the images of a request.
        max_tokens (`int`): Most tokens of an answer.
        max_seconds (`float`): Longest time from the start of a request to the end of its answer.
        max_body (`int`): Largest request in bytes.
        max_requests (`int`): Most requests at the same time.
    """

    images: ImageLimits
    max_tokens: int
    max_seconds: float
    max_body: int
    max_requests: int


def build_app(engine: Engine, name: str, limits: Limits, api_key: str | None = None) -> Starlette:
    """The server as an ASGI application, which starts and stops the engine.

    Args:
        engine (`Engine`): Answers questions.
        name (`str`): Name of the model for clients.
        limits (`Limits`): What a client may ask for.
        api_key (`str`, *optional*): The key that clients must send.
    """
    api, chat = Api(engine, name, limits), "/v1/chat/completions"
    guard = Middleware(
        Guard,
        api_key=api_key,
        max_requests=limits.max_requests,
        max_seconds=limits.max_seconds,
        metrics=engine.metrics,
    )
    routes = [
        Route(chat, api.chat, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.models),
        Route("/health", api.health),
        Route("/metrics", api.show_metrics),
    ]
    errors = {ApiError: _show_error, HTTPException: _show_http_error, Exception: _show_bug}
    return Starlette(routes=routes, middleware=[guard], exception_handlers=errors, lifespan=api.lifespan)


async def _show_error(request: Request, error: ApiError) -> Response:
    return error.as_response()


async def _show_http_error(request: Request, error: HTTPException) -> Response:
    path = f"{request.method} {request.url.path}"
    return ApiError(error.status_code, f"`{path}`: {error.detail.lower()}; see /v1/chat/completions.").as_response()


async def _show_bug(request: Request, error: Exception) -> Response:
    return _as_api_error(error).as_response()


class Api:
    """Answers requests of OpenAI's chat API. See `build_app` for the arguments."""

    def __init__(self, engine: Engine, name: str, limits: Limits):
        self.engine, self.name, self.limits = engine, name, limits
        self.started = int(time.time())
        self._readers = ThreadPoolExecutor(NUM_READERS, "reader")
        # Slow servers must not keep other requests from being read.
        self._fetchers = ThreadPoolExecutor(limits.max_requests, "fetcher")
        # Tokenizers fail if two threads use the same one, so each thread has a processor of its own.
        self._own = threading.local()

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Run the engine while the server runs."""
        self.engine.start()
        yield
        await asyncio.to_thread(self.engine.stop)
        for pool in (self._readers, self._fetchers):
            pool.shutdown(wait=False, cancel_futures=True)

    async def health(self, request: Request) -> Response:
        """Whether questions are answered."""
        is_alive = self.engine.is_alive
        return JSONResponse({"status": "ok" if is_alive else "the engine has ended"}, 200 if is_alive else 503)

    async def show_metrics(self, request: Request) -> Response:
        """All counters, for Prometheus."""
        return Response(self.engine.metrics.as_text(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        """The one model, in a list or alone."""
        model = {"id": self.name, "object": "model", "created": self.started, "owned_by": "spa3r"}
        name = request.path_params.get("name")
        if name is None:
            return JSONResponse({"object": "list", "data": [model]})
        self._check_model(name)
        return JSONResponse(model)

    async def chat(self, request: Request) -> Response:
        """Answer the last message of a conversation."""
        deadline = time.monotonic() + self.limits.max_seconds
        try:
            async with asyncio.timeout(self.limits.max_seconds):
                work = self._respond(await self._read_body(request), deadline)
                response = await _while_connected(request, work)
        except TimeoutError as error:
            raise self._too_late() from error
        return Response(status_code=CLIENT_GONE) if response is None else response

    async def _read_body(self, request: Request) -> bytes:
        limit, parts, size = self.limits.max_body, [], 0
        declared = request.headers.get("content-length", "")
        is_long = declared.isdigit() and int(declared) > limit
        async for part in request.stream():
            size += len(part)
            is_long = is_long or size > limit
            # The rest is read, because many clients look at the response only when they have sent everything.
            if not is_long:
                parts.append(part)
            elif size > MAX_IGNORED * limit:
                break
        if is_long:
            raise ApiError(
                413, f"The request has more than {limit:,} bytes, the most allowed; send fewer or smaller images."
            )
        return b"".join(parts)

    async def _respond(self, body: bytes, deadline: float) -> Response:
        """The whole answer, or a stream that has begun: its status, too, depends on how the answer begins."""
        loop, news = asyncio.get_running_loop(), asyncio.Queue()
        chat, max_new_tokens = await loop.run_in_executor(self._readers, parse_request, body, self.limits.max_tokens)
        del body  # images are large
        self._check_model(chat.model)
        pool = self._fetchers if any(map(is_url, chat.image_urls)) else self._readers
        contents = await loop.run_in_executor(pool, read_images, chat.image_urls, self.limits.images)
        deliver = partial(loop.call_soon_threadsafe, news.put_nowait)
        question = await loop.run_in_executor(
            self._readers, self._ask, chat, contents, max_new_tokens, deliver, deadline
        )
        del contents
        chat.messages.clear()
        pieces = self._answer(question, news, AnswerText(self.engine.processor.tokenizer, chat.stops))
        answer = Answer(self.name, question, chat)
        first = await anext(pieces)
        if chat.stream:
            return StreamingResponse(answer.stream(first, pieces), media_type="text/event-stream")
        return JSONResponse(await answer.complete(first, pieces))

    def _ask(
        self,
        chat: ChatRequest,
        contents: Sequence[bytes],
        max_new_tokens: int,
        deliver: Callable[[Progress], None],
        deadline: float,
    ) -> Question:
        """Make a question of a request and the files of its images; runs in a thread, because images take long."""
        (first, *further), system = chat.turns, chat.system
        key = _scene_key(contents, system)
        prepare = partial(self._prepare, contents, system)
        try:
            scene = None if self.engine.has_scene(key) else prepare()
            prefix = scene_prefix(self._processor, len(contents), system)
            conversation = scene_conversation(len(contents), first["content"], system) + further
            tokens = tokenize_after_prefix(self._processor, prefix, conversation)
        except ValueError as error:
            raise ApiError(400, str(error), "messages") from error
        return Question(key, prepare, scene, tokens, max_new_tokens, chat.options, deliver, deadline)

    def _prepare(self, contents: Sequence[bytes], system: str | None) -> SceneInputs:
        return prepare_scene(self._processor, decode_images(contents, self.limits.images), system)

    @property
    def _processor(self) -> Spa3VLMProcessor:
        """The processor of this thread."""
        if not hasattr(self._own, "processor"):
            self._own.processor = deepcopy(self.engine.processor)
        return self._own.processor

    def _check_model(self, name: str):
        if name != self.name:
            raise ApiError(
                404, f"There is no model `{name:.80}` here; ask `{self.name}`.", "model", code="model_not_found"
            )

    def _too_late(self) -> ApiError:
        return ApiError(
            504, f"The answer took longer than {self.limits.max_seconds:g} s; ask for fewer tokens, or ask later."
        )

    async def _answer(
        self, question: Question, news: asyncio.Queue[Progress], text: AnswerText
    ) -> AsyncIterator[tuple[str, str | None]]:
        """New text of an answer as it arrives, and why the answer ends when it does."""
        try:
            self.engine.submit(question)
            reason = None
            while reason is None:
                async with asyncio.timeout(question.deadline - time.monotonic()):
                    progress = await news.get()
                if progress.error is not None:
                    raise progress.error
                piece = text.add(progress.tokens, is_last=progress.finish_reason is not None)
                reason = "stop" if text.is_stopped else progress.finish_reason
                if piece or reason:
                    yield piece, reason
        except TimeoutError as error:
            raise self._too_late() from error
        except Exception as error:
            raise _as_api_error(error) from error
        finally:
            question.cancel()


class Answer:
    """The answer to a request, as JSON or as events.

    Args:
        model (`str`): Name of the model.
        question (`Question`): The question; it counts tokens.
        chat (`ChatRequest`): The request.
    """

    def __init__(self, model: str, question: Question, chat: ChatRequest):
        self.question, self.chat = question, chat
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    async def complete(self, first: tuple[str, str | None], pieces: AsyncIterator) -> dict[str, Any]:
        """The whole answer."""
        text, reason = first
        async for piece, end in pieces:
            text, reason = text + piece, end
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": reason,
        }
        return self.head | {"object": "chat.completion", "choices": [choice], "usage": self._usage}

    async def stream(self, first: tuple[str, str | None], pieces: AsyncIterator) -> AsyncIterator[str]:
        """The answer as events; an error in its middle is the last one."""
        piece, reason = first
        yield self._event({"role": "assistant", "content": piece}, reason)
        try:
            async for piece, reason in pieces:
                yield self._event({"content": piece}, reason)
        except ApiError as error:
            yield _as_event(error.as_json())
            return
        if self.chat.stream_options and self.chat.stream_options.include_usage:
            yield _as_event(self.head | {"object": "chat.completion.chunk", "choices": [], "usage": self._usage})
        yield "data: [DONE]\n\n"

    def _event(self, delta: dict[str, str], reason: str | None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _as_event(self.head | {"object": "chat.completion.chunk", "choices": [choice]})

    @property
    def _usage(self) -> dict[str, Any]:
        prompt, answer = self.question.num_prompt_tokens, self.question.num_answered
        cached = prompt - len(self.question.tokens) if self.question.was_cached else 0
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def _as_event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValueError):
        return ApiError(400, str(error), "messages")
    if isinstance(error, Stopped):
        return ApiError(503, str(error))
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return ApiError(503, "The server's memory ran out; send fewer images, or ask again later.")
    return ApiError(500, "The server failed at this request; its log has the reason.")


def _scene_key(contents: Sequence[bytes], system: str | None) -> str:
    """Equal for the same files in the same order behind the same system message."""
    parts = [hashlib.sha256(content).hexdigest() for content in contents] + [json.dumps(system)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


async def _while_connected(request: Request, work: Awaitable) -> Any:
    """The result of some work, or `None` as soon as the client has gone."""
    tasks = [asyncio.ensure_future(work), asyncio.create_task(_wait_for_disconnect(request))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()


async def _wait_for_disconnect(request: Request):
    while (await request.receive())["type"] != "http.disconnect":
        pass
