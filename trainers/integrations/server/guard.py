"""What every request passes first: the key, the number of requests at a time, and the clock."""

import asyncio
import hmac
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from transformers.utils import logging

from .errors import ApiError
from .metrics import Metrics

logger = logging.get_logger(__name__)

API = "/v1/"
# After the time for its answer, a client that reads slowly may take so long for the rest of it.
SECONDS_TO_READ = 30


class Guard:
    """Refuses requests to the API without the key, or beyond the limits, before their bodies are read.

    Args:
        app (`ASGIApp`): What is guarded.
        api_key (`str`, *optional*): The key that clients must send.
        max_requests (`int`): Most requests at the same time.
        max_seconds (`float`): Longest time of a request; a client that reads slowly gets a little more.
        metrics (`Metrics`): Counts requests.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, max_requests: int, max_seconds: float, metrics: Metrics):
        self.app, self.api_key, self.metrics = app, api_key, metrics
        self.max_requests, self.max_seconds = max_requests, max_seconds
        self.num_active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        if scope["type"] != "http" or not scope["path"].startswith(API):
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 0

        async def send_and_note(message: Message):
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self.num_active += 1
        self.metrics.active.set(self.num_active)
        try:
            self._check(dict(scope["headers"]))
            async with asyncio.timeout(self.max_seconds + SECONDS_TO_READ):
                await self.app(scope, receive, send_and_note)
        except ApiError as error:
            await error.as_response()(scope, receive, send_and_note)
        except TimeoutError:
            logger.warning(f"A client read its answer for more than {SECONDS_TO_READ} s; the connection is closed.")
        except Exception:
            status = 500  # the outermost layer answers, and logs the error
            raise
        finally:
            self.num_active -= 1
            self.metrics.active.set(self.num_active)
            self.metrics.requests.labels(str(status)).inc()
            self.metrics.seconds.observe(time.monotonic() - start)

    def _check(self, headers: dict[bytes, bytes]):
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if self.api_key is not None and not hmac.compare_digest(given, self.api_key.encode()):
            what = "is not this server's" if given else "is missing"
            raise ApiError(401, f"The API key {what}; send it as `Authorization: Bearer KEY`.", code="invalid_api_key")
        if self.num_active > self.max_requests:
            raise ApiError(
                429, f"{self.max_requests} requests are being answered, the most at a time; try again in a second."
            )
