"""HTTP requests to the API of `sammi serve`, given to the application without a socket."""

import asyncio
import base64
import io
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from fastapi import FastAPI
from hypothesis import strategies as st
from PIL import Image

from sammi_jax.inference.prompting import SamImage, SamMasks, make_prompts
from sammi_jax.inference.result import Segmentation
from sammi_jax.inference.segmenter import Segmenter
from sammi_jax.inference.towers import SamModel
from sammi_jax.serve.api import _PROBLEMS, OPERATIONS, PATH, make_api
from sammi_jax.serve.guard import Guard
from sammi_jax.serve.limits import Limits
from sammi_jax.serve.service import Service
from tests.fuzz.guard import Fault, check
from tests.fuzz.mutate import dumps, hostile_value, mutated, texts
from tests.fuzz.target import Target

_BOUNDARY = "xyz"


class _Sam(SamModel):
    """Checks prompts as SAM does, and finds nothing."""

    def __init__(self) -> None:
        pass

    def embed(self, pixels: Any) -> SamImage:
        return SamImage(pixels, None)

    def segment(self, image: SamImage, multimask: Any = None, **prompts: Any) -> SamMasks:
        found = make_prompts(
            image, 96, 24, prompts["points"], prompts.get("labels"), prompts.get("boxes"), None
        )
        count = found.count
        zeros = np.zeros((count, *image.size), bool)
        numbers = np.zeros(count, np.float32)
        return SamMasks(
            zeros,
            numbers,
            numbers,
            np.zeros((count, 4), np.int32),
            np.zeros((count, 24, 24), np.float32),
        )


class StubModel(Segmenter):
    """Finds the first class everywhere."""

    def __init__(self) -> None:
        pass

    @property
    def sam(self) -> SamModel:
        return _Sam()

    def segment_batch(self, images: Any, classes: Any, batch_size: int) -> list[Segmentation]:
        size = images[0].shape[:2]
        return [
            Segmentation(
                images[0], list(classes.names), np.zeros(size, np.int32), np.zeros(size, np.float32)
            )
        ]


def make_app() -> Guard:
    """The whole application of `sammi serve`, but for its page and its model."""
    limits = Limits(upload_bytes=10**5, pixels=10**6)
    service = Service(StubModel(), "model", limits)
    app = FastAPI(openapi_url=None)
    app.mount(PATH, make_api(service))
    return Guard(app, service.metrics, OPERATIONS, limits.body_bytes)


@cache
def _app() -> Any:
    return SimpleNamespace(app=make_app(), loop=asyncio.new_event_loop())


async def _ask(app: Any, method: str, path: str, headers: Any, chunks: list[bytes]) -> Any:
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Any] = []

    async def receive() -> Any:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    status = sent[0]["status"]
    return status, b"".join(m.get("body", b"") for m in sent[1:])


def _image() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((7, 9, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


IMAGE = _image()
PNG_BASE64 = base64.b64encode(IMAGE).decode()
_SEGMENT = {
    "image": PNG_BASE64,
    "classes": ["sky", "sofa; couch"],
    "background": "other",
    "threshold": 0.3,
    "labels_png": True,
}
_MASKS = {
    "image": PNG_BASE64,
    "points": [[[1, 2]], [[3, 4]]],
    "labels": [[1], [0]],
    "boxes": [[0, 0, 5, 5], [1, 1, 2, 2]],
    "multimask": True,
}


def _form(fields: list[tuple[str, str, bytes]]) -> bytes:
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        % (
            _BOUNDARY.encode(),
            name.encode("utf-8", "replace"),
            extra.encode("utf-8", "replace"),
            content,
        )
        for name, extra, content in fields
    ]
    return b"".join(parts) + b"--%s--\r\n" % _BOUNDARY.encode()


_FIELDS = [
    ("image", '; filename="a.png"', IMAGE),
    ("classes", "", b"sky, sofa"),
    ("background", "", b"other"),
    ("threshold", "", b"0.3"),
    ("labels_png", "", b"true"),
    ("points", "", b"[[1, 2]]"),
    ("labels", "", b"[1]"),
    ("boxes", "", b"[[0, 0, 5, 5]]"),
    ("multimask", "", b"false"),
]
_TYPES = [
    "application/json",
    "application/json; charset=utf-8",
    f"multipart/form-data; boundary={_BOUNDARY}",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "text/plain",
    "",
    "APPLICATION/JSON ;",
    *(
        f"multipart/form-data; boundary={_BOUNDARY}; charset={name}"
        for name in (
            "utf-8",
            "nothing",
            "undefined",
            "idna",
            "hex",
            "unicode_escape",
            "punycode",
            "utf-16",
            "raw_unicode_escape",
            "rot13",
            "mbcs",
            "\xe9",
        )
    ),
    f"multipart/form-data; boundary={'y' * 300}",
]


@st.composite
def _requests(draw: st.DrawFn) -> tuple[str, str, list[tuple[bytes, bytes]], list[bytes]]:
    path = draw(
        st.sampled_from(
            ["/api/segment", "/api/masks"] * 5
            + ["/api/health", "/api/metrics", "/api", "/api/none", "/"]
        )
    )
    method = draw(
        st.sampled_from(["POST"] * 9 + ["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"])
    )
    seed = _SEGMENT if "segment" in path else _MASKS
    kind = draw(st.integers(0, 9))
    content_type = "application/json" if kind < 5 else f"multipart/form-data; boundary={_BOUNDARY}"
    if kind < 4:
        body = dumps(draw(hostile_value([seed])))
    elif kind == 4:
        body = draw(mutated([dumps(seed), dumps(_SEGMENT)]))
    else:
        fields = draw(st.lists(st.sampled_from(_FIELDS), max_size=6))
        fields = [_FIELDS[0], *fields] if draw(st.booleans()) else fields
        for _ in range(draw(st.integers(0, 2))):
            extra = draw(
                st.sampled_from(
                    ["", '; filename="a"', '; filename=""', "; filename*=utf-8''%ff", ";;"]
                )
            )
            content = draw(
                st.one_of(
                    st.binary(max_size=20),
                    texts.map(lambda t: t.encode("utf-8", "replace")),
                    st.just(b"[" * 30_000),
                    st.just(b"[[1e400, 1]]"),
                    st.just(b"9" * 6000),
                )
            )
            fields.append(
                (draw(st.one_of(st.sampled_from([f[0] for f in _FIELDS]), texts)), extra, content)
            )
        body = _form(fields)
        body = draw(mutated([body])) if kind == 9 else body
    if not draw(st.integers(0, 5)):
        content_type = draw(st.sampled_from(_TYPES))
    headers = [(b"content-type", content_type.encode("latin-1")), (b"host", b"h")]
    if not draw(st.integers(0, 5)):
        name = draw(
            st.sampled_from(
                [
                    b"content-length",
                    b"transfer-encoding",
                    b"content-encoding",
                    b"accept",
                    b"expect",
                    b"x-forwarded-for",
                    b"cookie",
                    b"authorization",
                ]
            )
        )
        headers.append(
            (
                name,
                draw(
                    st.one_of(
                        st.binary(max_size=12),
                        st.sampled_from(
                            [b"9" * 6000, b"-1", b"0", b"\xb2", b"99999999999", b"chunked", b"gzip"]
                        ),
                    )
                ),
            )
        )
    chunks = [body]
    if draw(st.booleans()) and len(body) > 2:
        cut = draw(st.integers(1, len(body) - 1))
        chunks = [body[:cut], b"", body[cut:]]
    return method, path, headers, chunks


def _request(case: Any, folder: Path) -> Any:
    method, path, headers, chunks = case
    served = _app()
    own = (Path("/"),)  # the thread pool and the cache of compiled programs write where they like
    status, body = check(
        lambda: served.loop.run_until_complete(_ask(served.app, method, path, headers, chunks)),
        own=own,
    )
    allowed = {200, 405, 307, *_PROBLEMS} - {500}
    if status not in allowed:
        raise Fault(f"status {status}: {body[:200]!r}")
    if path in OPERATIONS and method == "POST":
        answer = json.loads(body)
        if status != 200:
            (text,) = answer.values()
            if (
                list(answer) != ["error"]
                or not text
                or len(text.splitlines()) != 1
                or len(text) > 4000
            ):
                raise Fault(f"not one line: {body[:300]!r}")
            return Exception(text)
    return status


TARGETS = [Target("request", _requests, _request, 8000)]
