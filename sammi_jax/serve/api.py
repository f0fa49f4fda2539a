"""The JSON API: ``/api/segment``, ``/api/masks``, ``/api/health``, ``/api/metrics``."""

import asyncio
import base64
import io
import json
from collections.abc import Callable
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sammi_jax import __version__
from sammi_jax.errors import SammiError
from sammi_jax.figures import label_image
from sammi_jax.inference.mask_files import mask_records
from sammi_jax.inference.prompting import SamImage, SamMasks
from sammi_jax.inference.result import Segmentation
from sammi_jax.serve import messages
from sammi_jax.serve.limits import RequestError, decode_base64
from sammi_jax.serve.metrics import CONTENT_TYPE, status_of
from sammi_jax.serve.service import Service

PATH = "/api"
OPERATIONS = {f"{PATH}/segment": "segment", f"{PATH}/masks": "masks"}

_RETRY_SECONDS = "5"
_PROBLEMS = {
    400: "The body is not what its content type says.",
    404: "No such path, or the model has no SAM.",
    408: "The body did not arrive in time.",
    413: "More bytes, pixels, classes or prompts than the server accepts.",
    415: "Neither JSON nor a form.",
    422: "A field or the image cannot be used.",
    429: "Too many requests are in work; see Retry-After.",
    500: "An error of the server, which its log describes.",
    503: "The device was not free in time.",
    504: "The work was not done in time.",
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": messages.Problem, "description": text} for status, text in _PROBLEMS.items()
}
_MAX_FIELDS = 300  # of a form; class names may be fields of their own


def make_api(service: Service) -> FastAPI:
    """The API as an application of its own, to be mounted at `PATH`."""
    # Swagger's page would load scripts from elsewhere.
    api = FastAPI(title="sammi serve", version=__version__, docs_url=None, redoc_url=None)
    limiter = CapacityLimiter(service.worker.places)

    async def answer(request: Request, read: Callable[[Request], Any], job: Callable) -> Any:
        """Read a request and run its job, in one of the worker's places."""
        with service.worker.place():
            try:
                async with asyncio.timeout(service.limits.seconds):
                    image, options = await read(request)
            except TimeoutError as error:
                raise RequestError(408, "the request did not arrive in time") from error
            return await to_thread.run_sync(job, image, options, limiter=limiter)

    @api.post(
        "/segment",
        summary="Segment an image into named classes.",
        response_model=messages.SegmentAnswer,
        responses=_RESPONSES,
        openapi_extra=messages.body_schema(messages.SegmentRequest, messages.SegmentForm),
    )
    async def segment(request: Request) -> Any:
        def job(image: bytes, options: messages.SegmentOptions) -> Any:
            return service.segment(
                image,
                options.classes,
                options.background,
                options.threshold,
                lambda result: JSONResponse(segment_answer(result, options.labels_png)),
            )

        return await answer(request, read_segment_request, job)

    @api.post(
        "/masks",
        summary="Ask SAM for masks, by points and boxes.",
        response_model=messages.MaskAnswer,
        responses=_RESPONSES,
        openapi_extra=messages.body_schema(messages.MaskRequest, messages.MaskForm),
    )
    async def masks(request: Request) -> Any:
        def job(image: bytes, options: messages.MaskOptions) -> Any:
            return service.masks(
                image,
                lambda found, result: JSONResponse(mask_answer(found, result)),
                **options.model_dump(include=set(messages.MaskOptions.model_fields)),
            )

        return await answer(request, read_mask_request, job)

    @api.get("/health", summary="What the server is.", response_model=messages.Health)
    def health() -> Any:
        return {
            "status": "ok",
            "version": __version__,
            "model": service.name,
            "sam": service.model.sam is not None,
            "waiting": service.worker.waiting,
            "open": service.worker.taken,
            "places": service.worker.places,
        }

    @api.get("/metrics", summary="Counts for Prometheus.", response_class=PlainTextResponse)
    def metrics() -> Any:
        return PlainTextResponse(service.metrics.text(), media_type=CONTENT_TYPE)

    api.add_exception_handler(SammiError, _failed)
    api.add_exception_handler(HTTPException, _refused)
    api.add_exception_handler(ClientDisconnect, _gone)
    api.add_exception_handler(Exception, _broken)
    return api


async def read_segment_request(request: Request) -> Any:
    """The image's bytes and `messages.SegmentOptions` of a request."""
    if _content_type(request) == "multipart/form-data":
        image, fields = await _read_form(request)
        names = fields.get("classes", [])
        values = _single(fields, but="classes")
        if names:
            values["classes"] = names if len(names) > 1 else names[0]
        return image, _check(messages.SegmentOptions, values)
    found = _parse(messages.SegmentRequest, await _read_json(request))
    return decode_base64(found.image), found


async def read_mask_request(request: Request) -> Any:
    """The image's bytes and `messages.MaskOptions` of a request."""
    if _content_type(request) == "multipart/form-data":
        image, fields = await _read_form(request)
        values: dict[str, Any] = _single(fields)
        for name in ("points", "labels", "boxes"):
            if name in values:
                values[name] = _json(values[name], name)
        return image, _check(messages.MaskOptions, values)
    found = _parse(messages.MaskRequest, await _read_json(request))
    return decode_base64(found.image), found


def segment_answer(result: Segmentation, labels_png: bool) -> dict[str, Any]:
    """`messages.SegmentAnswer` of a result."""
    encoded = None
    if labels_png:
        with io.BytesIO() as file:
            label_image(result.labels, len(result.class_names)).save(file, format="PNG")
            encoded = base64.b64encode(file.getvalue()).decode()
    return {
        "summary": result.summary(),
        "annotations": result.annotations(),
        "regions": result.regions(),
        "labels_png": encoded,
    }


def mask_answer(image: SamImage, result: SamMasks) -> dict[str, Any]:
    """`messages.MaskAnswer` of SAM's masks."""
    height, width = image.size
    return {"height": height, "width": width, "masks": mask_records(result)}


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _read_json(request: Request) -> Any:
    kind = _content_type(request)
    if kind != "application/json":
        raise RequestError(
            415, f"content type {kind[:60]!r}: send application/json or multipart/form-data"
        )
    return await request.body()


def _json(text: str | bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"{what}: not valid JSON") from error


async def _read_form(request: Request) -> Any:
    """The image's bytes, and the texts of every other field."""
    fields: dict[str, list[str]] = {}
    image = None
    try:
        async with request.form(max_files=1, max_fields=_MAX_FIELDS) as form:
            for name, value in form.multi_items():
                if isinstance(value, str):
                    fields.setdefault(name, []).append(value)
                elif name == "image" and isinstance(value, UploadFile):
                    image = await value.read()
                else:
                    raise RequestError(
                        422, f"{name[:60]}: an unknown file; the image is called image"
                    )
    except ValueError as error:  # of Python's codecs, of which a request may name any
        raise RequestError(400, "the form cannot be read; send it in UTF-8") from error
    if image is None:
        raise RequestError(422, "image: missing; send the file of an image under this name")
    return image, fields


def _single(fields: dict[str, list[str]], but: str = "") -> dict[str, Any]:
    for name, values in fields.items():
        if name != but and len(values) > 1:
            raise RequestError(422, f"{name[:60]}: given {len(values)} times; give it once")
    return {name: values[0] for name, values in fields.items() if name != but}


def _parse(model: type[BaseModel], body: bytes) -> Any:
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise _problem(error) from error


def _check(model: type[BaseModel], values: dict[str, Any]) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _problem(error) from error


def _problem(error: ValidationError) -> RequestError:
    """One of pydantic's complaints in one line: which field, and what is wrong.

    Where a field may be of several types, it complains for each; the one that reaches farthest into
    the field is for the type that was meant.
    """
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = max(errors, key=lambda found: len(found["loc"]))
    if first["type"] == "json_invalid":
        return RequestError(400, f"the body is not valid JSON: {first['msg']}")
    # Between field and index stand the names of the types that were tried.
    field, *rest = first["loc"] or ("the body",)
    where = ".".join([str(field)[:60], *(str(part) for part in rest if isinstance(part, int))])
    return RequestError(422, f"{where}: {first['msg']}")


def _failed(request: Request, error: Exception) -> JSONResponse:
    status = status_of(error)
    headers = {"Retry-After": _RETRY_SECONDS} if status in (429, 503) else None
    return _response(status, str(error), headers)


def _refused(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own refusals: unknown paths and methods, broken forms."""
    assert isinstance(error, HTTPException)
    return _response(error.status_code, str(error.detail), error.headers)


def _gone(request: Request, error: Exception) -> JSONResponse:
    """Nobody reads this; it is no error of the server."""
    return _response(400, "the client went away before the request was complete")


def _broken(request: Request, error: Exception) -> JSONResponse:
    return _response(500, "an error of the server; its log describes it")


def _response(status: int, text: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": " ".join(text.split())}, status, headers)
