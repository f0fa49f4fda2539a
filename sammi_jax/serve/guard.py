"""What holds for every request, of the page and of the API: size, headers, counting."""

import json
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sammi_jax.serve.metrics import Metrics

# The page loads nothing from elsewhere, and tells nobody of itself.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "media-src 'self' blob:; worker-src 'self' blob:; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


_DIGITS = 20  # of the longest number of bytes


class Guard:
    """ASGI middleware around the whole server.

    Args:
        app: the server.
        metrics: count what is asked of the API.
        operations: the API's paths, and what they are counted as.
        body_bytes: of a request; longer ones are answered with 413.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, operations: dict[str, str], body_bytes: int):
        self.app = app
        self.metrics = metrics
        self.operations = operations
        self.body_bytes = body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Pass a request on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, size = time.perf_counter(), 0
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        operation = self.operations.get(path) if scope["method"] == "POST" else None

        async def counted() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.body_bytes:
                raise HTTPException(413, self._too_large())
            return message

        async def answer(message: Message) -> Any:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
                if operation is not None:
                    seconds = time.perf_counter() - start
                    self.metrics.count("api", operation, message["status"], seconds)
            await send(message)

        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and (len(declared) > _DIGITS or int(declared) > self.body_bytes):
            return await _refuse(answer, self._too_large())
        return await self.app(scope, counted, answer)

    def _too_large(self) -> str:
        return f"the request is larger than {self.body_bytes} bytes; send a smaller image"


async def _refuse(send: Send, error: str) -> Any:
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
