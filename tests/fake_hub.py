"""A Hugging Face Hub on loopback with the few addresses that `huggingface_hub` uses here."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Repository:
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    @property
    def commit(self):
        content = repr(sorted((name, _sha256(data)) for name, data in self.files.items()))
        return hashlib.sha1(content.encode()).hexdigest()


class FakeHub:
    """Repositories by name, and the log of requests (``"GET /path"``)."""

    def __init__(self):
        self.repositories, self.requests, self.uploads = {}, [], {}
        self.token = "hf_writer"  # the one that may write
        self.fails = set()  # requests that are answered with error 500, by a part of their path
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def _do(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                hub.requests.append(f"{self.command} {self.path}")
                status, headers, content = hub.answer(self.command, self.path, self.headers, body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = _do

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def add(self, name, folder, **options):
        """A repository with the files of a folder."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.repositories[name] = Repository(files, **options)
        return self.repositories[name]

    def downloaded(self):
        return [r.rpartition("/")[2] for r in self.requests if re.match(r"GET .*/resolve/", r)]

    def answer(self, command, path, headers, body):
        path = path.partition("?")[0]
        if any(part in path for part in self.fails):
            return _error(500, None)
        if command == "PUT":  # the storage of large files needs no token
            self.uploads[path.rpartition("/")[2]] = body
            return _json({})
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        writes = command == "POST"
        if writes and headers["Authorization"] != f"Bearer {self.token}":
            return _error(401 if headers["Authorization"] is None else 403, None)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        found = re.match(r"/(?:api/models/)?([\w.-]+/[\w.-]+?)(?:\.git)?(?:/(.*))?$", path)
        repository = self.repositories.get(found[1]) if found else None
        if repository is None:
            return _error(401, "RepoNotFound")
        action, _, rest = (found[2] or "revision/main").partition("/")
        if action == "revision":
            return self._info(found[1], repository, rest)
        if action == "tree":
            return _json([_entry(name, data) for name, data in repository.files.items()])
        if action == "resolve":
            return self._file(repository, rest.partition("/")[2])
        if action == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            return _json({"files": [_upload_mode(name) for name in names]})
        if action == "info":
            href = lambda oid: {"href": f"{self.url}/storage/{oid}"}  # noqa: E731
            objects = json.loads(body)["objects"]
            return _json(
                {"objects": [{**o, "actions": {"upload": href(o["oid"])}} for o in objects]}
            )
        assert action == "commit", path
        return self._commit(found[1], repository, [json.loads(line) for line in body.splitlines()])

    def _create(self, wanted):
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.repositories:
            return _error(409, None, json.dumps({"url": f"{self.url}/{name}"}))
        self.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        return _json({"url": f"{self.url}/{name}"})

    def _info(self, name, repository, revision):
        if revision not in ("main", "v1", repository.commit):
            return _error(404, "RevisionNotFound")
        files = [{"rfilename": file} for file in repository.files]
        facts = {"private": repository.private, "gated": "manual" if repository.gated else False}
        return _json({"id": name, "sha": repository.commit, "siblings": files, **facts})

    def _file(self, repository, name):
        if repository.gated:
            return _error(403, "GatedRepo")
        if name not in repository.files:
            return _error(404, "EntryNotFound")
        data = repository.files[name]
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{_sha256(data)}"'}
        return 200, headers, data

    def _commit(self, name, repository, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.uploads[value["oid"]]
        commit = repository.commit
        return _json({"commitUrl": f"{self.url}/{name}/commit/{commit}", "commitOid": commit})


def _upload_mode(name):
    mode = "lfs" if name.endswith(".safetensors") else "regular"
    return {"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": None}


def _entry(name, data):
    return {"type": "file", "path": name, "size": len(data), "oid": _sha256(data)[:40]}


def _sha256(data):
    return hashlib.sha256(data).hexdigest()


def _json(value):
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _error(status, code, body="{}"):
    headers = {"Content-Type": "application/json"} | ({"X-Error-Code": code} if code else {})
    return status, headers, body.encode()
