"""The server: the page and the API in one application, and how it runs and ends."""

import asyncio
import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from sammi_jax.errors import SammiError
from sammi_jax.serve.api import OPERATIONS, PATH, make_api
from sammi_jax.serve.guard import Guard
from sammi_jax.serve.page import CSS, THEME, make_page
from sammi_jax.serve.service import Service

_GOODBYE_SECONDS = 3  # for open pages, which never end their connection


def make_app(service: Service, folder: Path, root_path: str = "") -> Any:
    """The whole server as an ASGI application.

    Args:
        service: model, worker, limits.
        folder: for uploads and results; whoever makes it removes it.
        root_path: where a proxy puts the server, such as "/sammi".
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.mount(PATH, make_api(service))
    asyncio.run(_mount_page(app, service, folder, root_path))
    return Guard(app, service.metrics, OPERATIONS, service.limits.body_bytes)


async def _mount_page(app: FastAPI, service: Service, folder: Path, root_path: str) -> Any:
    """Asynchronous, because Gradio leaves event loops open where it finds none running."""
    gr.mount_gradio_app(
        app,
        make_page(service, folder),
        path="/",
        root_path=root_path or None,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=service.limits.upload_bytes,
        theme=THEME,
        css=CSS,
        app_kwargs={"openapi_url": None, "docs_url": None, "redoc_url": None},
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections; port 0 means any that is free.

    Raises:
        SammiError: the address is not of this machine, or the port is taken or reserved.
    """
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server((address[0], port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SammiError(
            f"{host} port {port}: {reason}; name another with --host and --port"
        ) from error


def run(app: Any, listening: socket.socket, root_path: str) -> None:
    """Serve until SIGINT or SIGTERM, both of which leave through ``KeyboardInterrupt``."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)  # uvicorn sends it again once it has ended
    config = uvicorn.Config(
        app,
        log_level="warning",
        root_path=root_path,
        timeout_graceful_shutdown=_GOODBYE_SECONDS,
    )
    _Server(config).run(sockets=[listening])


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> Any:
        """End quietly: that the streams of open pages are cut off is no error."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)
