"""Object stores on loopback, a server that refuses, and a line that can be cut."""

import socket
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from etils.epath.backend import _FileSystemSpecBackend
from gcp_storage_emulator.server import create_server
from moto.server import ThreadedMotoServer

from sammi_jax import object_store
from tests.processes import free_port

BUCKET = "bucket"
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@contextmanager
def google():
    """The port of an emulator of Google's store that holds `BUCKET`; its content is in memory."""
    server = create_server("127.0.0.1", port := free_port(), in_memory=True, default_bucket=BUCKET)
    server.start()
    server._api._httpd.handle_error = lambda *_: None  # it prints that a connection was cut
    try:
        yield port
    finally:
        server.stop()


@contextmanager
def amazon():
    """The port of an emulator of Amazon's store, which holds nothing."""
    server = ThreadedMotoServer("127.0.0.1", port := free_port(), verbose=False)
    server.start()
    try:
        yield port
    finally:
        server.stop()


def variables(port):
    """The environment with which all clients use an emulator instead of the real store."""
    url = f"http://127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": url,  # gcsfs, Google's client
        "TENSORSTORE_GCS_HTTP_URL": url,  # tensorstore, for Orbax
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }


def use(monkeypatch, port):
    """Let the clients of this process use an emulator, and ask it once."""
    for name, value in variables(port).items():
        monkeypatch.setenv(name, value)
    object_store.as_path("gs://bucket")  # gcsfs reads a variable that this sets
    import gcsfs
    import gcsfs.retry
    import s3fs

    # It waits for the smaller of two numbers of seconds before it tries again: for none, here.
    monkeypatch.setattr(gcsfs.retry, "min", lambda *_: 0, raising=False)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    for timeout in ("connect_timeout", "read_timeout"):  # a busy machine is no failure
        monkeypatch.setattr(s3fs.S3FileSystem, timeout, 600)
    for client in (gcsfs.GCSFileSystem, s3fs.S3FileSystem):
        client.clear_instance_cache()
    object_store._filesystem.cache_clear()
    _FileSystemSpecBackend._get_filesystem.cache_clear()  # of epath, for Orbax and JAX


@contextmanager
def refusing(status, body):
    """The port of a server that answers every request with this status and body."""

    class Refusal(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = answer

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    server.handle_error = lambda *_: None  # it prints that a client did not wait for the answer
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Line:
    """A port that leads to another one, until it is cut.

    Args:
        target: the other port.
        until: the line is cut at the first request that holds these bytes.
        answer: instead, every such request gets these bytes, and the line stays.

    Attributes:
        was_cut: set when it is cut for the first time.
    """

    def __init__(self, target, until, answer=None):
        self._target, self._until, self._answer = target, until, answer
        self.was_cut, self._is_cut = threading.Event(), False
        self._sockets = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def restore(self):
        self._until, self._is_cut = None, False

    def close(self):
        self._hang_up()
        self._listener.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._is_cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for ends in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source, to, is_request):
        with suppress(OSError):
            while content := source.recv(1 << 16):
                if is_request and self._until is not None and self._until in content:
                    if self._answer is None:
                        self._hang_up()
                    else:
                        source.sendall(self._answer)
                        to.shutdown(socket.SHUT_RDWR)  # the emulator serves one at a time
                        while source.recv(1 << 16):  # the rest of the request
                            pass
                    return
                to.sendall(content)
            to.shutdown(socket.SHUT_WR)

    def _hang_up(self):
        self._is_cut = True
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self.was_cut.set()
