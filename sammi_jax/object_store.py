"""Paths in buckets: ``gs://BUCKET/PATH`` and ``s3://BUCKET/PATH``.

A path that a user gives becomes a `pathlib.Path` or, in a bucket, an `etils.epath.Path`. The
clients are fsspec's: gcsfs and s3fs, which are optional. Their errors become one line with the
remedy.

An object is written whole or not at all, a folder of several objects is not. So a folder gets the
object `UNFINISHED` first, then its files, the one that its readers require last; then `UNFINISHED`
is deleted (`sammi_jax.files.atomic_folder`).
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EINVAL
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

from etils import epath

from sammi_jax.errors import SammiError, one_line

AnyPath: TypeAlias = Path | epath.Path
PathLike: TypeAlias = str | os.PathLike[str]

_LONGEST_NAME = 255  # bytes, in every usual file system
UNFINISHED = ".sammi-unfinished"

_SECONDS_A_REQUEST = 300  # gcsfs sends large files in parts of 50 MB
_CLIENTS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # package, and our extra that brings it
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<rest>.*)", re.DOTALL)
_COLLAPSED = re.compile(r"(gs|s3):/(?=[^/])")  # what pathlib makes of a URL
_LOGIN = {
    "gs": "log in with 'gcloud auth application-default login', or set "
    "GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "log in with 'aws sso login', or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}


def as_path(text: PathLike) -> AnyPath:
    """The path that a user names: of this machine, or of a bucket. Nothing is read.

    Raises:
        SammiError: a URL of another kind, one without a bucket, or one whose client is not
            installed; or a path that no file system has.

    Example:
        >>> as_path("runs/clip")
        PosixPath('runs/clip')
    """
    url = _as_url(text)
    if url is None:
        _check_parts(Path(text))
        return Path(text)
    scheme, rest = url
    if scheme == "file":
        raise SammiError(f"{text}: write a path of this machine without file://")
    if scheme not in _CLIENTS:
        raise SammiError(
            f"{text}: {scheme}:// cannot be used; give a path of this machine, gs://BUCKET/PATH or "
            "s3://BUCKET/PATH"
        )
    if not rest.partition("/")[0]:
        raise SammiError(f"{text}: names no bucket; give {scheme}://BUCKET/PATH")
    if ".." in rest.split("/"):
        raise SammiError(f"{text}: there is no '..' in a bucket; name the folder itself")
    package, extra = _CLIENTS[scheme]
    if find_spec(package) is None:
        raise SammiError(f"{text}: needs the package {package}: pip install 'sammi_jax[{extra}]'")
    _set_up_clients()
    return epath.Path(f"{scheme}://{rest}")


def _check_parts(path: Path) -> None:
    """Raise what the system says of such names at the first use only, and in other ways."""
    for part in path.parts:
        if len(part.encode("utf-8", "surrogatepass")) > _LONGEST_NAME or "\0" in part:
            raise SammiError(
                f"{str(path)[:_LONGEST_NAME]!r}: no path of a file: a name in it has more than "
                f"{_LONGEST_NAME} bytes, or a null character"
            )


def is_bucket(path: PathLike) -> bool:
    """Whether a path lies in a bucket."""
    url = _as_url(path)
    return url is not None and url[0] in _CLIENTS


def local_path(text: PathLike) -> Path:
    """The path of this machine that a user names, where no bucket can be used.

    Raises:
        SammiError: it is a URL.
    """
    if _as_url(text) is None:
        return Path(text)
    raise SammiError(
        f"{text}: this can only be a path of this machine; copy it from or to the bucket with "
        "'gcloud storage cp -r' or 'aws s3 cp --recursive'"
    )


def _as_url(text: PathLike) -> tuple[str, str] | None:
    """Scheme and rest of a URL, also of one that went through pathlib; None: no URL."""
    found = _URL.fullmatch(_COLLAPSED.sub(r"\1://", os.fspath(text), count=1))
    return None if found is None else (found["scheme"].lower(), found["rest"])


def absolute(path: AnyPath) -> AnyPath:
    """The absolute path, ``~`` expanded; in a bucket every path is."""
    return path.expanduser().absolute() if isinstance(path, Path) else path


def shown(path: AnyPath) -> str:
    """A path as messages print it: on this machine relative to the working directory."""
    return os.path.relpath(path) if isinstance(path, Path) else str(path)


@dataclass(frozen=True)
class Stored:
    """An object."""

    size: int
    version: str  # changes with its content
    modified: float  # when it was written, in seconds since 1970


def list_objects(path: AnyPath, depth: Literal[1] | None = None) -> dict[str, Stored]:
    """The objects under a path of a bucket by their names below it; of an object itself: ``""``.

    Args:
        path: in a bucket.
        depth: 1 for those directly in the folder; None for all.

    Raises:
        SammiError: the bucket cannot be read.
    """
    with bucket_errors(path):
        try:
            if depth == 1:  # s3fs.find with a depth says that there is nothing if access is denied
                found = _files(path).ls(str(path), detail=True)
            else:
                found = _files(path).find(str(path), detail=True).values()
        except FileNotFoundError:
            return {}
    top = str(path).partition("://")[2].rstrip("/")
    objects = {}
    for info in sorted(found, key=lambda info: info["name"]):
        key = info["name"]
        if info["type"] == "directory" or key.endswith("/"):  # or an object that stands for one
            continue
        name = key.removeprefix(top).lstrip("/")
        if ".." in PurePosixPath(name).parts:
            raise SammiError(f"{path}: holds an object named {name!r}, which is no file name")
        version = str(info.get("generation") or info.get("ETag"))  # Google's, Amazon's
        written = info.get("mtime") or info["LastModified"]
        objects[name] = Stored(int(info["size"]), version, written.timestamp())
    return objects


def exists(path: AnyPath) -> bool:
    """Whether there is a file, an object or a folder.

    Raises:
        SammiError: the bucket cannot be read, which does not mean that there is none.
    """
    if isinstance(path, Path):
        return path.exists()
    with bucket_errors(path):
        try:
            _files(path).info(str(path))
        except FileNotFoundError:
            return False
    return True


def read_bytes(path: AnyPath) -> bytes:
    """The content of a file or an object.

    Raises:
        FileNotFoundError: there is none.
        SammiError: the bucket cannot be read.
    """
    if isinstance(path, Path):
        return path.read_bytes()
    with bucket_errors(path):
        try:
            return _files(path).cat_file(str(path))
        except FileNotFoundError:
            pass
    raise FileNotFoundError(2, "No such object in the bucket", str(path))


def read_range(path: AnyPath, begin: int, end: int, version: str) -> bytes | None:
    """The bytes from ``begin`` to ``end`` of an object; None: it does not have that version.

    Args:
        path: in a bucket.
        begin: offset of the first byte.
        end: offset behind the last one.
        version: of `list_objects`.

    Raises:
        SammiError: the bucket cannot be read.
    """
    from fsspec.asyn import sync

    files: Any = _files(path)
    is_google = str(path).startswith("gs://")
    with bucket_errors(path):
        try:
            if is_google:
                content: bytes = files.cat_file(str(path), begin, end, generation=version)
            else:
                content = sync(files.loop, _read_s3, files, str(path), begin, end, version) or b""
        except FileNotFoundError:
            return None
        except Exception as error:
            if not is_google and getattr(error, "errno", None) == EINVAL:  # precondition failed
                return None
            if getattr(error, "code", None) in (416, "416"):  # it is shorter
                return None
            raise
    return content if len(content) == end - begin else None


async def _read_s3(files: Any, path: str, begin: int, end: int, version: str) -> bytes:
    """s3fs's ``cat_file`` takes no condition."""
    bucket, key, _ = files.split_path(path)
    span = f"bytes={begin}-{end - 1}"
    answer = await files._call_s3("get_object", Bucket=bucket, Key=key, Range=span, IfMatch=version)
    async with answer["Body"] as body:
        return await body.read()


def put(path: AnyPath, content: bytes | Path) -> None:
    """Write an object of a bucket: bytes, or the content of a file.

    Raises:
        SammiError: it cannot be written; what was there before stays.
    """
    with bucket_errors(path):
        if isinstance(content, bytes):
            _files(path).pipe_file(str(path), content)
        else:
            _files(path).put_file(str(content), str(path))


def get(path: AnyPath, file: Path) -> None:
    """Download an object of a bucket into a file.

    Raises:
        SammiError: it cannot be read.
    """
    with bucket_errors(path):
        _files(path).get_file(str(path), str(file))


def remove(path: AnyPath) -> None:
    """Delete an object or everything in a folder, if there is any.

    Raises:
        SammiError: it cannot be deleted.
    """
    with bucket_errors(path):
        try:
            _files(path).rm(str(path), recursive=True)
        except FileNotFoundError:
            return


def move(path: AnyPath, target: AnyPath) -> None:
    """Move everything in a folder of a bucket: copies, then deletes.

    Raises:
        SammiError: it cannot be moved.
    """
    with bucket_errors(path):
        for name in list_objects(path):
            _files(path).copy(str(path / name), str(target / name))
        _files(path).rm(str(path), recursive=True)


@contextmanager
def bucket_errors(path: AnyPath | None = None) -> Iterator[None]:
    """Errors of the clients as one line with the remedy; other errors pass.

    Args:
        path: that is used; None: the message of the client has to name it.
    """
    try:
        yield
    except (SammiError, FileNotFoundError) as error:
        if isinstance(error, SammiError) or path is None:
            raise
        bucket = "/".join(str(path).split("/")[:3])
        raise SammiError(f"{path}: no such object, or no such bucket {bucket}") from error
    except Exception as error:
        problem = access_problem(error, None if path is None else _as_url(path))
        if problem is None:
            raise
        raise SammiError(problem if path is None else f"{path}: {problem}") from error


def access_problem(error: BaseException, url: tuple[str, str] | None = None) -> str | None:
    """What is wrong with the access to a bucket, and the remedy; None: the error is another one.

    Tells a bucket that cannot be used now from data that are damaged.

    Args:
        error: of gcsfs, s3fs, Google's or Amazon's client, or of tensorstore.
        url: scheme and rest of the path that is used.
    """
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    names = {f"{kind.__module__}.{kind.__name__}" for e in chain for kind in type(e).__mro__}
    text = " ".join(str(e) for e in chain)
    said = one_line(error)
    login = _LOGIN.get(url[0] if url else "", "; or ".join(_LOGIN.values()))
    codes = {getattr(e, "code", None) for e in chain}
    if codes & {401, "401"} or names & _NO_CREDENTIALS or _UNAUTHENTICATED.search(text):
        return f"the bucket's credentials are missing, wrong or expired ({said}); {login}"
    if codes & {403, "403"} or _FORBIDDEN.search(text):
        return (
            f"access to the bucket is denied ({said}); this account needs the right to list, read, "
            "write and delete objects there"
        )
    if names & _NETWORK or _UNREACHABLE.search(text):
        return (
            f"the bucket is not reachable ({said}); what is saved stays: run the same command again"
        )
    if _NO_BUCKET.search(text):
        return f"no such bucket ({said}); check its name"
    return None


_NO_CREDENTIALS = {
    "google.auth.exceptions.GoogleAuthError",
    "botocore.exceptions.NoCredentialsError",
    "botocore.exceptions.PartialCredentialsError",
    "botocore.exceptions.TokenRetrievalError",
    "botocore.exceptions.UnauthorizedSSOTokenError",
}
_NETWORK = {
    "aiohttp.client_exceptions.ClientError",
    "requests.exceptions.RequestException",
    "botocore.exceptions.HTTPClientError",
    "builtins.TimeoutError",
}
_UNAUTHENTICATED = re.compile(
    r"UNAUTHENTICATED|Invalid Credentials|ExpiredToken|InvalidAccessKeyId|SignatureDoesNotMatch"
    r"|Anonymous caller|Bad Request"  # S3's answer to a HEAD with an expired token has no more text
    r"|HTTP (response )?(status )?(code )?:? ?401"
)
_FORBIDDEN = re.compile(r"Forbidden: |PERMISSION_DENIED|AccessDenied|Access Denied|\b403\b")
_UNREACHABLE = re.compile(r"UNAVAILABLE|DEADLINE_EXCEEDED|CURL error")
_NO_BUCKET = re.compile(r"NoSuchBucket|The specified bucket does not exist")


def _files(path: AnyPath) -> Any:
    return _filesystem(str(path).partition("://")[0])


@cache
def _filesystem(scheme: str) -> Any:
    import fsspec

    return fsspec.filesystem(scheme)


@cache
def _set_up_clients() -> None:
    """Defaults of the clients: of this module's, and of those that Orbax and JAX make by `epath`.

    What the user has set, by fsspec's files and variables, stays.
    """
    import aiohttp
    import fsspec.config

    # gcsfs would ask Google's gRPC service for the kind of every bucket, which needs a right of its
    # own; only "rapid" (zonal) buckets need that. It is read when gcsfs is imported.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    for scheme in _CLIENTS:
        defaults = fsspec.config.conf.setdefault(scheme, {})
        # Other processes write to the same bucket: a list that is kept would be old.
        defaults.setdefault("use_listings_cache", False)
    # gcsfs has no limit of its own: where a network falls silent it would wait for ever.
    timeout = aiohttp.ClientTimeout(total=_SECONDS_A_REQUEST)
    fsspec.config.conf["gs"].setdefault("requests_timeout", timeout)
