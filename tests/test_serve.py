"""`sammi serve`: the JSON API, its limits, its queue, and that the page builds."""

import asyncio
import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from sammi_jax.cli.main import main
from sammi_jax.config.extras import EXTRAS
from sammi_jax.data.openshapes import scene
from sammi_jax.errors import SammiError
from sammi_jax.inference.segmenter import load
from sammi_jax.ops.rle import decode_rle
from sammi_jax.serve import messages
from sammi_jax.serve.app import listen, make_app
from sammi_jax.serve.limits import Limits, RequestError, decode_base64, read_classes, read_image
from sammi_jax.serve.service import Service
from sammi_jax.serve.view import CLICKED, COLORS, OUTLINES, POINTS, draw, legend, make_view
from sammi_jax.serve.worker import Worker

NAMES = ["striped red thing; plain red thing", "dotted blue thing", "green waves"]
SCENE = scene("test_seen", 3).image
SECONDS = 600  # for threads that a test waits for; a test that passes never waits so long


def encode(pixels, format="PNG"):
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, format=format)
        return file.getvalue()


FILE = encode(SCENE)
BASE64 = base64.b64encode(FILE).decode()


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gradio").resolve()


@pytest.fixture(scope="module")
def service(model):
    return Service(model, "openshapes", Limits(), bundled=True)


@pytest.fixture(scope="module")
def app(service, folder):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
            patch.setenv(name, "")  # to be restored
        yield make_app(service, folder)


@pytest.fixture(scope="module")
def client(app):
    with TestClient(app) as client:
        yield client


@pytest.fixture
def limited(service):
    """The service with other limits, for one test."""
    before = service.limits

    def change(**values):
        service.limits = replace(before, **values)

    yield change
    service.limits = before


def segment(client, **fields):
    return client.post("/api/segment", json={"image": BASE64, "classes": NAMES} | fields)


def masks(client, **fields):
    return client.post("/api/masks", json={"image": BASE64} | fields)


def error(response, status):
    """The one line of a failed request."""
    assert response.status_code == status, response.text
    found = messages.Problem.model_validate(response.json()).error
    assert found
    assert "\n" not in found
    return found


# --- answers ---


def test_segment_is_what_the_model_says(client, model):
    response = segment(client, labels_png=True)
    assert response.status_code == 200, response.text
    answer = response.json()
    messages.SegmentAnswer.model_validate(answer)
    expected = model.segment(SCENE, NAMES)
    assert answer["summary"] == json.loads(json.dumps(expected.summary()))
    assert answer["annotations"] == expected.annotations()
    assert answer["regions"] == expected.regions()
    labels = Image.open(io.BytesIO(base64.b64decode(answer["labels_png"])))
    assert labels.mode == "P"
    np.testing.assert_array_equal(np.asarray(labels), expected.labels)


def test_a_form_is_answered_as_json_is(client):
    fields = {"classes": ", ".join(NAMES), "background": "other", "threshold": "0.1"}
    form = client.post("/api/segment", data=fields, files={"image": FILE})
    body = segment(client, background="other", threshold=0.1)
    assert form.json() == body.json()
    assert form.json()["summary"]["class_names"][-1] == "other"
    assert form.json()["labels_png"] is None
    several = client.post("/api/segment", data={"classes": NAMES}, files={"image": FILE})
    assert several.json() == segment(client).json()
    url = segment(client, image=f"data:image/png;base64,{BASE64}")
    assert url.json() == segment(client).json()


def test_masks_are_what_sam_says(client, model):
    prompts = {"points": [[[20, 20]], [[60, 70]]], "boxes": [[5, 5, 50, 60], [40, 40, 90, 90]]}
    response = masks(client, **prompts, multimask=True)
    assert response.status_code == 200, response.text
    answer = response.json()
    messages.MaskAnswer.model_validate(answer)
    expected = model.sam.segment(SCENE, **prompts, multimask=True)
    found = [decode_rle(mask["segmentation"], "") for mask in answer["masks"]]
    np.testing.assert_array_equal(np.stack(found), expected.masks)
    assert len(found) == 6
    assert [answer["height"], answer["width"]] == list(SCENE.shape[:2])
    for mask, iou in zip(answer["masks"], expected.iou, strict=True):
        assert mask["predicted_iou"] == pytest.approx(iou, abs=1e-5)
    form = client.post(
        "/api/masks",
        data={name: json.dumps(value) for name, value in prompts.items()} | {"multimask": "true"},
        files={"image": FILE},
    )
    assert form.json() == answer


def test_an_embedding_is_computed_once(client, service, monkeypatch):
    service._embeddings.clear()
    calls = []
    embed = type(service.model.sam).embed
    monkeypatch.setattr(
        type(service.model.sam), "embed",
        lambda sam, image: (calls.append(type(image)), embed(sam, image))[1],
    )  # fmt: skip
    for x in (10, 20):
        assert masks(client, points=[[x, 10]]).status_code == 200
    assert calls.count(np.ndarray) == 1
    for index in range(9):
        pixels = scene("test_seen", index).image
        image = base64.b64encode(encode(pixels)).decode()
        assert masks(client, image=image, points=[[1, 1]]).status_code == 200
    assert len(service._embeddings) == 4


def test_health_and_metrics(client, service):
    health = client.get("/api/health").json()
    messages.Health.model_validate(health)
    assert health["model"] == "openshapes"
    assert health["sam"]
    assert (health["waiting"], health["open"], health["places"]) == (0, 0, 9)

    def count(**labels):
        wanted = {f'{name}="{value}"' for name, value in labels.items()}
        for line in client.get("/api/metrics").text.splitlines():
            found = re.fullmatch(r"sammi_requests_total\{(.*)\} (\S+)", line)
            if found and set(found[1].split(",")) == wanted:
                return float(found[2])
        return 0.0

    labels = {"source": "api", "operation": "segment"}
    before = [count(**labels, status=status) for status in (200, 422)]
    segment(client)
    segment(client, classes="")
    assert [count(**labels, status=status) for status in (200, 422)] == [n + 1 for n in before]
    response = client.get("/api/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "sammi_queue_waiting 0.0" in response.text
    assert 'sammi_request_seconds_bucket{le="+Inf",operation="segment",source="api"}' in (
        response.text
    )


def test_the_schema_is_complete(client):
    schema = client.get("/api/openapi.json").json()
    assert schema["servers"] == [{"url": "/api"}]
    assert set(schema["paths"]) == {"/segment", "/masks", "/health", "/metrics"}
    for path in ("/segment", "/masks"):
        post = schema["paths"][path]["post"]
        bodies = post["requestBody"]["content"]
        assert set(bodies) == {"application/json", "multipart/form-data"}
        assert "image" in bodies["application/json"]["schema"]["required"]
        assert set(post["responses"]) == {
            "200", "400", "404", "408", "413", "415", "422", "429", "500", "503", "504",
        }  # fmt: skip
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema)):
        assert name in schema["components"]["schemas"]


# --- limits ---


def test_image_limits(client, limited):
    limited(pixels=96 * 96 - 1)
    assert "0.00922 megapixels; at most 0.009215" in error(segment(client), 413)
    limited(upload_bytes=1000)
    assert "at most 0.001 MB" in error(segment(client), 413)
    assert "--max-upload-mb" in error(masks(client, points=[[1, 1]]), 413)


def test_a_bomb_is_not_decoded(monkeypatch):
    """Its header says 40000 x 40000 pixels."""
    monkeypatch.setattr("sammi_jax.serve.limits.load_image", None)
    header = bytearray(encode(np.zeros((1, 1, 3), np.uint8), "BMP"))
    header[18:26] = np.array([40_000, 40_000], "<i4").tobytes()
    with pytest.raises(RequestError, match="megapixels"):
        read_image(bytes(header), Limits())


def test_only_known_formats_are_decoded():
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    Image.open(io.BytesIO(drawing))  # Pillow would, with another program
    with pytest.raises(SammiError, match="is no image that can be read"):
        read_image(drawing, Limits())


def test_class_limits(client, limited, tmp_path, monkeypatch):
    limited(classes=3, name_length=10)
    assert "classes: 4 names and synonyms; at most 3" in error(
        segment(client, classes="a; b, c, d"), 413
    )
    assert "has 11 characters; at most 10" in error(segment(client, classes="a" * 11), 413)
    assert "has 11 characters" in error(segment(client, classes="a", background="b" * 11), 413)
    # No file of the server is ever read.
    (tmp_path / "red").write_text("secret")
    monkeypatch.chdir(tmp_path)
    assert segment(client, classes="red").json()["summary"]["class_names"] == ["red"]


def test_prompt_limits(client, limited):
    limited(prompts=2, points=3)
    assert "3 prompts with 3 points" in error(masks(client, points=[[[1, 1]]] * 3), 413)
    assert "1 prompts with 4 points" in error(masks(client, points=[[1, 1]] * 4), 413)
    assert "3 prompts" in error(masks(client, boxes=[[1, 1, 9, 9]] * 3), 413)
    assert masks(client, points=[[[1, 1]]] * 2).status_code == 200


def test_body_limit(client, app, monkeypatch):
    monkeypatch.setattr(app, "body_bytes", 1000)
    assert "larger than 1000 bytes" in error(segment(client), 413)

    def chunks():  # of a length that no header tells
        yield from [b"x" * 600] * 2

    headers = {"content-type": "application/json"}
    response = client.post("/api/segment", content=chunks(), headers=headers)
    assert "larger than 1000 bytes" in error(response, 413)


# --- what cannot be used ---


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image": "%%%"}, "image: not base64"),
        ({"image": "aGVsbG8="}, "the image: is no image that can be read"),
        ({"image": base64.b64encode(b"%PDF-1.7 ...").decode()}, "is a PDF document"),
        ({"image": base64.b64encode(FILE[:300]).decode()}, "cannot be decoded"),
        ({"image": ""}, "image: String should have at least 1 character"),
        ({"image": None}, "image: "),
        ({"classes": ""}, "the class list is empty"),
        ({"classes": []}, "the class list is empty"),
        ({"classes": ["cat", 3]}, "classes.1: Input should be a valid string"),
        ({"classes": 3}, "classes: Input should be a valid string"),
        ({"classes": "cat, dog, cat"}, "names cat more than once"),
        ({"threshold": 1.5}, "threshold: Input should be less than 1"),
        ({"threshold": "0.5"}, "threshold: Input should be a valid number"),
        ({"labels_png": "yes"}, "labels_png: Input should be a valid boolean"),
        ({"class_names": "cat"}, "class_names: Extra inputs are not permitted"),
    ],
)
def test_fields_that_cannot_be_used(client, fields, words):
    assert words in error(segment(client, **fields), 422)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "no prompt: give points, boxes or masks"),
        ({"points": []}, "points (0,)"),
        ({"points": [[]]}, "points"),
        ({"points": [[96, 10]]}, "the point (96, 10) lies outside the image of 96 x 96 pixels"),
        ({"points": [[1, 2, 3]]}, "points"),
        ({"points": [[1, 1e300]]}, "points"),
        ({"points": [[[1, 2]], [[1, 2], [3, 4]]]}, "points: give numbers, all of one shape"),
        ({"points": [[1, 2]], "labels": [1, 0]}, "point labels"),
        ({"points": [[[1, 2]]], "labels": [[1], [1, 0]]}, "as many for each object"),
        ({"points": [[1, 2]], "labels": [2]}, "labels"),
        ({"boxes": [[5, 5, 5, 9]]}, "a box has no area"),
        ({"boxes": [[5, 5, 9]]}, "boxes.0.3: Field required"),
    ],
)
def test_prompts_that_cannot_be_used(client, fields, words):
    assert words in error(masks(client, **fields), 422)


@pytest.mark.parametrize(
    ("content", "type", "status", "words"),
    [
        (b"{", "application/json", 400, "the body is not valid JSON"),
        (b"\xff\xfe", "application/json", 400, "the body is not valid JSON"),
        (b"[1]", "application/json", 422, "the body: Input should be an object"),
        (b"", "application/json", 400, "the body is not valid JSON"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "send application/json or multipart"),
        (b"a", "text/plain; charset=x", 415, "content type 'text/plain'"),
        (b"a", "multipart/form-data", 400, "oundary"),
        (b"--b\r\nbroken", "multipart/form-data; boundary=b", 422, "image: missing"),
        (b'{"image": "\\ud800", "classes": "a"}', "application/json", 400, "hex escape"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["segment", "masks"])
def test_bodies_that_cannot_be_read(client, path, content, type, status, words):
    response = client.post(f"/api/{path}", content=content, headers={"content-type": type})
    assert words in error(response, status)


def test_forms_that_cannot_be_used(client):
    def post(path, data, **files):
        return client.post(f"/api/{path}", data=data, files=files)

    assert "image: missing" in error(
        client.post("/api/segment", files={"classes": (None, "a")}), 422
    )
    assert "other: an unknown file" in error(post("segment", {"classes": "a"}, other=b"x"), 422)
    assert "classes: Field required" in error(post("segment", {}, image=FILE), 422)
    assert "threshold: given 2 times" in error(
        post("segment", {"classes": "a", "threshold": ["0.1", "0.2"]}, image=FILE), 422
    )
    assert "points: not valid JSON" in error(post("masks", {"points": "[["}, image=FILE), 400)
    assert "points" in error(post("masks", {"points": "3"}, image=FILE), 422)
    assert "is an empty file" in error(post("segment", {"classes": "a"}, image=b""), 422)


def test_paths_and_methods(client):
    assert error(client.get("/api/nothing"), 404) == "Not Found"
    response = client.get("/api/segment")
    assert error(response, 405) == "Method Not Allowed"
    assert response.headers["allow"] == "POST"


def test_an_error_of_ours_ends_nothing(app, service, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("secret detail")

    client = TestClient(app, raise_server_exceptions=False)
    with monkeypatch.context() as patch:
        patch.setattr(type(service.model), "segment_batch", broken)
        assert "secret" not in error(segment(client), 500)
    assert segment(client).status_code == 200
    assert service.worker.taken == 0


def test_a_model_without_sam(client, service, monkeypatch):
    monkeypatch.setitem(vars(service.model), "sam", None)
    assert "which has no SAM" in error(masks(client, points=[[1, 1]]), 404)
    assert not client.get("/api/health").json()["sam"]


# --- requests that do not end ---


def send_slowly(app, *received):
    """The status of a request of which only some messages arrive."""
    messages, sent = list(received), []

    async def receive():
        if messages:
            return messages.pop(0)
        return await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/api/segment", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "query_string": b"",
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"]


def test_a_body_that_does_not_arrive(app, service, limited):
    limited(seconds=0.01)
    part = {"type": "http.request", "body": b"{", "more_body": True}
    assert send_slowly(app, part) == 408
    assert service.worker.taken == 0


def test_a_client_that_goes_away(app, service):
    part = {"type": "http.request", "body": b"{", "more_body": True}
    assert send_slowly(app, part, {"type": "http.disconnect"}) == 400
    assert service.worker.taken == 0


# --- the queue ---


@pytest.fixture
def busy(service):
    """The worker with a job that ends when the test says so."""
    begun, end = threading.Event(), threading.Event()

    def job():
        begun.set()
        assert end.wait(SECONDS)

    thread = threading.Thread(target=service.worker.run, args=(job,))
    thread.start()
    assert begun.wait(SECONDS)
    yield end
    end.set()
    thread.join()


def test_a_full_queue(client, service):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.worker, "places", 1)
        with service.worker.place():
            response = segment(client)
            assert "1 requests are in work or waiting" in error(response, 429)
            assert int(response.headers["retry-after"]) > 0
            assert "in work or waiting" in error(masks(client, points=[[1, 1]]), 429)
        assert segment(client).status_code == 200


def test_waiting_too_long(client, busy, limited):
    limited(seconds=0.01)
    response = segment(client)
    assert "waited 0.01 seconds for the device" in error(response, 503)
    assert "retry-after" in response.headers


def test_working_too_long(client, service, limited, monkeypatch):
    end = threading.Event()
    monkeypatch.setattr(type(service.model), "segment_batch", lambda *_, **__: end.wait(SECONDS))
    limited(seconds=0.2)
    assert "not done after 0.2 seconds" in error(segment(client), 504)
    end.set()


def test_jobs_run_one_at_a_time_in_order(service, busy):
    done = []
    threads = []
    for index in range(3):
        thread = threading.Thread(
            target=service.worker.run, args=(lambda index=index: done.append(index),)
        )
        thread.start()
        threads.append(thread)
        while service.worker.waiting <= index:
            assert thread.is_alive()
    assert done == []
    busy.set()
    for thread in threads:
        thread.join()
    assert done == [0, 1, 2]
    assert service.worker.waiting == 0


def test_errors_of_jobs_reach_who_asked():
    worker = Worker(0)

    def job():
        raise TimeoutError("the job's own")

    with pytest.raises(TimeoutError, match="the job's own"):
        worker.run(job, 600.0)
    assert worker.run(lambda: 3) == 3
    worker.close()


# --- small parts ---


def test_base64():
    assert decode_base64("aGVs\nbG8=") == b"hello"
    assert decode_base64("data:text/plain;base64,aGVsbG8=") == b"hello"
    for bad in ("aGVsbG8", "a", "é"):
        with pytest.raises(RequestError, match="not base64"):
            decode_base64(bad)


def test_words_that_the_bundled_model_does_not_know(client):
    assert "cat: the bundled model knows only the words plain, striped" in error(
        segment(client, classes="A red thing, a cat"), 422
    )


def test_an_empty_background_is_none():
    assert read_classes("a, b", " ", None, Limits()).names == ("a", "b")
    assert read_classes("a, b", "c", None, Limits()).names == ("a", "b", "c")


@pytest.mark.parametrize("shape", [(96, 96), (1, 1), (3, 700), (1500, 1000)])
def test_views_of_all_sizes(model, shape):
    pixels = np.resize(SCENE, (*shape, 3))
    result = model.segment(pixels, NAMES)
    view = make_view(result)
    assert max(view.labels.shape) <= 1280
    assert view.size == shape
    drawn = draw(view, [COLORS, OUTLINES, POINTS, CLICKED])
    assert drawn.shape == view.pixels.shape
    np.testing.assert_array_equal(draw(view, []), view.pixels)
    x, y = view.to_image(view.labels.shape[1] - 1.0, view.labels.shape[0] - 1.0)
    assert shape[1] - 1.5 <= x <= shape[1] - 1 or shape[1] == 1
    assert shape[0] - 1.5 <= y <= shape[0] - 1 or shape[0] == 1
    if shape == (96, 96):
        np.testing.assert_array_equal(view.labels[::6, ::6], result.labels)
        assert view.to_image(63.0, 120.0) == pytest.approx((10.5, 20), abs=0.1)


def test_the_legend_escapes_names():
    entry = {"index": 0, "name": "<script>", "fraction": 0.25, "mean_score": 0.5}
    text = legend([entry], 2)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "25.0%" in text


# --- the page ---


def test_the_page_loads_nothing_from_elsewhere(client):
    response = client.get("/")
    assert response.status_code == 200
    assert "Segment an image into classes that you name" in response.text
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', response.text)
    assert not re.findall(r"https?://[^\"' ]*font", client.get("/theme.css").text)


def page_event(client, name, data, **more):
    """What an event of the page answers, as its JavaScript gets it."""
    config = client.get("/config").json()
    (event,) = [found for found in config["dependencies"] if found["api_name"] == name]
    join = {"data": data, "fn_index": event["id"], "session_hash": "test", **more}
    assert client.post("/gradio_api/queue/join", json=join).status_code == 200
    for line in client.get("/gradio_api/queue/data?session_hash=test").text.splitlines():
        message = json.loads(line.removeprefix("data: ") or "{}")
        if message.get("msg") == "process_completed":
            return message
    raise AssertionError("no answer")


def test_the_page_opens_uploads_only(client, folder, tmp_path):
    other = tmp_path / "secret.png"
    other.write_bytes(FILE)
    for path in (str(other), "/etc/passwd", f"{folder}/../x.png", "http://127.0.0.1:9/x.png"):
        upload = {"path": path, "meta": {"_type": "gradio.FileData"}}
        answer = page_event(client, "segment", [upload, "cat", "", 0, []])
        assert not answer["success"], path
        if path.startswith("http"):
            assert "upload the image itself" in answer["output"]["error"]
    uploaded = client.post("/gradio_api/upload", files={"files": ("a b.png", FILE)}).json()[0]
    upload = {"path": uploaded, "orig_name": "a b.png", "meta": {"_type": "gradio.FileData"}}
    answer = page_event(client, "segment", [upload, ", ".join(NAMES), "", 0, [COLORS]])
    assert answer["success"], answer
    assert "a_b_sammi.zip" in json.dumps(answer)


@pytest.mark.parametrize("index", [None, 5, [1, 2, 3], ["x", 1], ["nan", 1], [10**400, 1]])
def test_clicks_that_no_page_sends(client, index):
    uploaded = client.post("/gradio_api/upload", files={"files": ("a.png", FILE)}).json()[0]
    valid = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
    assert page_event(client, "segment", [valid, ", ".join(NAMES), "", 0, [COLORS]])["success"]
    event = {"event_data": {"index": index, "value": None, "selected": True}}
    answer = page_event(client, "click", [None, valid, [COLORS]], **event)
    assert "the click names no pixel" in answer["output"]["error"]


def test_uploads_of_the_page_are_limited(client, service):
    big = b"x" * (service.limits.upload_bytes + 1)
    assert client.post("/gradio_api/upload", files={"files": big}).status_code == 413


# --- the command ---


def test_options_that_make_no_sense(capsys):
    for option, value in (
        ("--max-upload-mb", "0"), ("--max-megapixels", "nan"), ("--max-classes", "-1"),
        ("--timeout", "inf"), ("--queue", "-1"), ("--port", "70000"), ("--root-path", "x"),
    ):  # fmt: skip
        assert main(["serve", f"{option}={value}"]) == 1
        assert f"sammi: error: {option} {value}" in capsys.readouterr().err.replace(".0:", ":")


def test_a_port_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(rf"sammi: error: 127.0.0.1 port {port}: .*--port\n", err)
    with pytest.raises(SammiError, match="no such host"):
        listen("no such host", 0)


def test_other_machines_are_a_warning(capsys):
    assert main(["serve", "--host", "0.0.0.0", "--model", "/nothing/here", "--port", "0"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("sammi: warning: --host 0.0.0.0: other machines can use this server")
    assert "/nothing/here" in err


def test_gradio_is_missing(capsys, monkeypatch):
    monkeypatch.setattr("sammi_jax.config.extras.installed_version", lambda _: None)
    assert main(["serve"]) == 1
    assert EXTRAS["serve"].command in capsys.readouterr().err


def test_the_help_needs_no_gradio():
    code = (
        "import sys, contextlib\n"
        "from sammi_jax.cli.main import main\n"
        "with contextlib.suppress(SystemExit): main(['serve', '--help'])\n"
        "sys.exit(bool({'gradio', 'fastapi', 'jax'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False,
                         capture_output=True)  # fmt: skip
    assert run.returncode == 0
