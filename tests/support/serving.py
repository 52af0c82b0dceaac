"""A running server in this process, and photos for its clients."""

import base64
import io
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
import pytest

openai = pytest.importorskip("openai", reason="needs the package openai")
uvicorn = pytest.importorskip("uvicorn", reason="needs the extra `serve`")
NAME = "spa3-vlm-tiny"


def limits_of(
    root: Path | None = None,
    may_fetch: bool = False,
    max_images: int = 8,
    max_pixels: int = 100_000,
    max_tokens: int = 64,
    max_seconds: float = 600,
    max_body: int = 1_000_000,
    max_requests: int = 64,
):
    """Limits that no test meets by accident."""
    from spa3r.trainers.integrations.server.app import Limits
    from spa3r.trainers.integrations.server.images import ImageLimits

    images = ImageLimits(root, may_fetch, max_images, max_pixels, max_body)
    return Limits(images, max_tokens, max_seconds, max_body, max_requests)


@contextmanager
def running_server(model, processor, limits=None, api_key=None, max_batch=16, cache_bytes=10**9):
    """Run a server in a thread; gives its address and its engine."""
    from spa3r.trainers.integrations.server.app import build_app
    from spa3r.trainers.integrations.server.engine import Engine
    from spa3r.trainers.integrations.server.metrics import Metrics

    engine = Engine(model, processor, Metrics(), max_batch, cache_bytes)
    app = build_app(engine, NAME, limits or limits_of(), api_key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", engine
        finally:
            server.should_exit = True
            thread.join()


def counted(monkeypatch, owner: type, name: str) -> list:
    """Have a method note each of its calls in the returned list."""
    calls, original = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **options: calls.append(1) or original(*args, **options))
    return calls


def metric(address: str, name: str) -> float:
    """The value of a metric without labels."""
    text = urllib.request.urlopen(f"{address}/metrics").read().decode()
    (value,) = [line.split()[1] for line in text.splitlines() if line.split()[0] == name]
    return float(value)


def until(condition: Callable[[], bool]):
    """Wait until a condition holds, for ten minutes at most."""
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def client_of(address: str, api_key: str = "none") -> openai.OpenAI:
    """The official client, which reports errors at once."""
    return openai.OpenAI(base_url=f"{address}/v1", api_key=api_key, max_retries=0, timeout=600)


def data_url(image: PIL.Image.Image) -> str:
    """An image as a data URL, without loss."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def user_message(question: str, urls: Sequence[str] = ()) -> dict:
    """A user's message: images and a question."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def ask(client: openai.OpenAI, *messages: dict, **options):
    """A completion of at most 6 tokens."""
    return client.chat.completions.create(messages=messages, **{"model": NAME, "max_tokens": 6} | options)


def answer(client: openai.OpenAI, *messages: dict, **options) -> str:
    """The text of a completion."""
    return ask(client, *messages, **options).choices[0].message.content
