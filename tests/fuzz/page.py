"""Requests to the page of `sammi serve`: its events, its uploads, and the addresses of Gradio.

Gradio answers what no page would send as it likes, with a status of 500 at times. What must hold
here: our functions refuse with one line that is no error of the server, no answer shows a file that
is not of the page, nothing is fetched or run, and the server still answers.
"""

import atexit
import json
import os
import secrets
import shutil
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st
from starlette.testclient import TestClient

from sammi_jax.serve.app import make_app
from sammi_jax.serve.limits import Limits
from sammi_jax.serve.service import Service
from sammi_jax.serve.view import CLICKED, COLORS
from tests.fuzz.guard import Fault, check
from tests.fuzz.mutate import dumps, hostile_value, mutated, numbers, texts, values
from tests.fuzz.requests import IMAGE, StubModel
from tests.fuzz.target import Target

_SECRET = b"not for anybody " + secrets.token_hex(8).encode()
_OWN_ERROR = "an error of the server"
_UPLOAD = "@upload@"  # stands for the path that the server gave to the upload of the case


@cache
def _server() -> Any:
    """The whole server with a model that finds nothing, and a file beside its own."""
    folder = Path(tempfile.mkdtemp(prefix="sammi-fuzz-page-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "own").mkdir()
    (folder / "secret.png").write_bytes(_SECRET)
    limits = Limits(upload_bytes=10**5, pixels=10**6)
    client = TestClient(
        make_app(Service(StubModel(), "model", limits), folder / "own"),
        raise_server_exceptions=False,
    )
    client.__enter__()  # starts Gradio's queue; until the process ends
    events = {e["api_name"]: e["id"] for e in client.get("/config").json()["dependencies"]}
    return SimpleNamespace(client=client, events=events, folder=folder)


def _paths() -> st.SearchStrategy[str]:
    return st.sampled_from(
        [
            "/etc/passwd",
            "../secret.png",
            "@folder@/secret.png",
            "@folder@/own/../secret.png",
            "@folder@/own/%2e%2e/secret.png",
            "file:///etc/passwd",
            "http://127.0.0.1:9/x.png",
            "http://169.254.169.254/latest/meta-data",
            "/proc/self/environ",
            "//etc/passwd",
            "C:\\a.png",
            ".",
            "@folder@/own",
            "",
        ]
    )


@st.composite
def _events(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """An event of the page, as its JavaScript sends it, with parts replaced."""
    names = ["segment", "segment", "click", "click", "clear", "draw"]
    name = draw(st.sampled_from(names))
    path = draw(st.one_of(st.just(_UPLOAD), st.just(_UPLOAD), _paths()))
    upload = {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    layers = [COLORS, CLICKED]
    data: Any = {
        "segment": [upload, "sky, sofa", "", 0, layers],
        "click": [None, upload, layers],
        "draw": [None, layers],
    }.get(name, [])
    index = draw(st.one_of(st.just([1, 2]), st.lists(numbers, max_size=3), values))
    event = {
        "data": data,
        "fn_index": f"@{name}@",
        "session_hash": "fuzz",
        "event_data": {"index": index, "value": None, "selected": True},
        "trigger_id": 1,
    }
    if draw(st.integers(0, 3)):
        event["data"] = draw(hostile_value([data]))
    else:
        event = draw(hostile_value([event]))
    return "POST", "/gradio_api/queue/join", dumps(event)


@st.composite
def _addresses(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """Another address of Gradio."""
    path = draw(_paths())
    address = draw(
        st.sampled_from(
            [
                "/gradio_api/file={}",
                "/gradio_api/file/{}",
                "/gradio_api/proxy={}",
                "/static/{}",
                "/assets/{}",
                "/svelte/{}",
                "/gradio_api/custom_component/1/client/component/{}",
                "/gradio_api/stream/fuzz/1/1/playlist-file",
                "/gradio_api/queue/data?session_hash={}",
                "/gradio_api/upload_progress?upload_id={}",
                "/gradio_api/call/{}",
                "/gradio_api/run/{}",
                "/gradio_api/api/{}",
                "/gradio_api/cancel",
                "/gradio_api/reset",
                "/gradio_api/component_server",
                "/gradio_api/process_recording",
                "/gradio_api/deep_link?session_hash={}",
                "/run-history/connect",
                "/vibe-edit",
                "/monitoring/{}",
                "/pwa_icon/{}",
                "/login",
                "/dev/reload",
                "/{}",
            ]
        )
    ).format(path)
    method = draw(st.sampled_from(["GET", "GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"]))
    body = dumps(
        draw(
            hostile_value(
                [
                    {"session_hash": "fuzz", "fn_index": 0, "event_id": "1"},
                    {"data": [path], "fn_name": "ls", "component_id": 1, "session_hash": "fuzz"},
                ]
            )
        )
    )
    return method, address, body


@st.composite
def _uploads(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """A file that is uploaded, under a hostile name."""
    name = draw(st.one_of(texts, _paths()))
    head = b'--xyz\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n'
    body = head % name.encode("utf-8", "replace") + IMAGE + b"\r\n--xyz--\r\n"
    return "POST", "/gradio_api/upload", draw(mutated([body]))


def _cases() -> st.SearchStrategy[tuple[str, str, bytes]]:
    return st.one_of(_events(), _events(), _addresses(), _uploads())


def _filled(content: bytes, server: Any) -> bytes:
    """The paths and numbers of this server in place of what stands for them."""
    if _UPLOAD.encode() in content:
        (path,) = server.client.post("/gradio_api/upload", files={"files": ("a.png", IMAGE)}).json()
        content = content.replace(_UPLOAD.encode(), path.encode())
    for name, number in server.events.items():
        content = content.replace(f'"@{name}@"'.encode(), str(number).encode())
    return content.replace(b"@folder@", os.fsencode(server.folder))


def _filled_event(server: Any) -> tuple[str, str, bytes]:
    """A valid request to segment an image."""
    event = {
        "data": [{"path": _UPLOAD, "meta": {"_type": "gradio.FileData"}}, "sky", "", 0, [COLORS]],
        "fn_index": "@segment@",
        "session_hash": "fuzz",
    }
    return "POST", "/gradio_api/queue/join", _filled(dumps(event), server)


def _ask(server: Any, method: str, address: str, body: bytes) -> str:
    """The answer, and the message of the event that it began."""
    client = server.client
    kind = "multipart/form-data; boundary=xyz" if "upload" in address else "application/json"
    answer = client.request(
        method, address, content=body, headers={"content-type": kind}, follow_redirects=False
    )
    found = answer.text
    if address.endswith("queue/join") and answer.status_code == 200:
        session = json.loads(body)["session_hash"]
        found += client.get("/gradio_api/queue/data", params={"session_hash": session}).text
    return found


def _run(case: tuple[str, str, bytes], folder: Path) -> Any:
    server = _server()
    method, address, body = case
    if b'"@click@"' in body:  # there must be a result
        _ask(server, *_filled_event(server))
    address = _filled(address.encode("utf-8", "replace"), server).decode()
    found = check(lambda: _ask(server, method, address, _filled(body, server)), own=(Path("/"),))
    for shown in (_SECRET.decode(), "root:x:0", "HOSTNAME="):
        if shown in found:
            raise Fault(f"shows a file that is not of the page: {found[:300]!r}")
    if _OWN_ERROR in found or "Traceback" in found:
        raise Fault(f"an error of the server: {found[:300]!r}")
    if server.client.get("/api/health").status_code != 200:
        raise Fault("the server no longer answers")
    return found


TARGETS = [Target("page", _cases, _run, 3000)]
