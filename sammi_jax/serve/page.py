"""The web page: an image and class names in, an overlay with layers out, SAM at a click."""

import html
import math
import re
import secrets
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from gradio import processing_utils
from gradio.themes import Soft
from PIL import Image

from sammi_jax.data.openshapes import VIEWS, scene
from sammi_jax.errors import SammiError
from sammi_jax.inference.prompting import SamImage, SamMasks
from sammi_jax.inference.result import Segmentation
from sammi_jax.serve.limits import RequestError
from sammi_jax.serve.service import Service
from sammi_jax.serve.view import (
    CLICKED,
    COLORS,
    OUTLINES,
    POINTS,
    View,
    draw,
    legend,
    make_view,
    with_click,
)  # fmt: skip

# Fonts of the reader's own machine: Gradio's themes load theirs from Google.
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
_FONT_MONO = ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
_KEPT_SECONDS = 3600  # that uploads, results and pages that nobody uses are kept
_SWEEP_SECONDS = 600
_EXAMPLES = (("test_seen", 3), ("test_seen", 8), ("test_unseen", 2), ("test_unseen", 11))
_DISTRACTORS = ("plain red thing", "striped blue thing", "green waves")  # that may be absent
_TITLE = """\
# Segment an image into classes that you name
Give an image and the names of what may be in it. Every pixel gets the class that fits it best."""
_BUNDLED_NOTE = """\
This server runs **openshapes**, the small model that comes with the package. It knows only
generated scenes such as the examples below, and names such as *striped red thing* or *blue waves*.
For photographs, start `sammi serve --model DIR` with a converted or trained model."""
_PLACEHOLDERS = {
    True: "striped red thing, dotted blue thing; dotted blue star, green waves",
    False: "sky, grass, sofa; couch, dog",
}
_HINT = (
    "The result appears here: the classes in color, their shares, and files to download. Give an "
    "image and class names, then press **Segment**."
)
THEME = Soft(primary_hue="indigo", font=_FONT, font_mono=_FONT_MONO)
CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#title h1 { margin-bottom: 0; } #title p { margin-top: .3em; opacity: .85; }
#note { border-left: 4px solid #f0b429; padding: .3em .8em; background: rgba(240,180,41,.12); }
#image img, #result img { image-rendering: pixelated; }
#image img { width: 100%; height: 100%; object-fit: contain; }
#result { cursor: crosshair; }
.legend { width: 100%; border-collapse: collapse; }
.legend td, .legend th { padding: .2em .45em !important; text-align: left; }
.legend, .legend * { border: none !important; }
.legend tbody tr { border-top: 1px solid rgba(128,128,128,.25) !important; }
.legend th { font-weight: 500; opacity: .7; }
.legend .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.legend .bar { width: 40%; }
.legend .bar div { height: .7em; border-radius: .35em; min-width: 2px; }
.swatch { display: inline-block; width: 1.1em; height: 1.1em; border-radius: .25em;
  vertical-align: middle; }
footer { display: none !important; }
"""


class _Inputs(NamedTuple):
    """The left column: what a person gives."""

    image: gr.Image
    names: gr.Textbox
    background: gr.Textbox
    threshold: gr.Slider
    start: gr.Button


class _Outputs(NamedTuple):
    """The right column: what comes out."""

    image: gr.Image
    layers: gr.CheckboxGroup
    sentence: gr.Markdown
    legend: gr.HTML
    download: gr.DownloadButton


def make_page(service: Service, folder: Path) -> gr.Blocks:
    """The page.

    Args:
        service: what it asks.
        folder: for the example images and for results; Gradio's own temporary folder.
    """
    _never_fetch()
    with gr.Blocks(
        title="SAM-MI: open-vocabulary segmentation",
        analytics_enabled=False,
        delete_cache=(_SWEEP_SECONDS, _KEPT_SECONDS),
    ) as page:
        gr.Markdown(_TITLE, elem_id="title")
        if service.bundled:
            gr.Markdown(_BUNDLED_NOTE, elem_id="note")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                given = _make_inputs(folder, service.bundled)
            with gr.Column(scale=3, min_width=420):
                shown = _make_outputs(has_sam=service.model.sam is not None)
        _connect(_Actions(service, folder), given, shown)
    page.queue(max_size=4 * service.worker.places, api_open=False)
    return page


def _make_inputs(folder: Path, bundled: bool) -> _Inputs:
    image = gr.Image(
        label="1. Image",
        sources=["upload", "clipboard"],
        type="filepath",
        image_mode=None,
        height=300,
        elem_id="image",
        buttons=[],
    )
    names = gr.Textbox(
        label="2. Class names",
        info="Commas between the classes, semicolons between synonyms.",
        placeholder=_PLACEHOLDERS[bundled],
        lines=2,
        elem_id="names",
    )
    with gr.Accordion("Background (optional)", open=False, elem_id="options"):
        background = gr.Textbox(
            label="Name of a class for everything else",
            placeholder="background",
            elem_id="background",
        )
        threshold = gr.Slider(
            0,
            0.95,
            value=0,
            step=0.01,
            label="Threshold",
            info="Pixels whose best score is lower become background. 0: off; the background is "
            "then asked for by its name, as any class.",
            elem_id="threshold",
        )
    start = gr.Button("3. Segment", variant="primary", elem_id="segment")
    if bundled:
        examples = _examples(folder)
        image.keep_in_cache.update(path for path, _ in examples)
        gr.Examples(
            examples,
            inputs=[image, names],
            label="Examples (a click fills in image and names)",
            elem_id="examples",
        )
    return _Inputs(image, names, background, threshold, start)


def _make_outputs(has_sam: bool) -> _Outputs:
    layers = [COLORS, OUTLINES, POINTS, CLICKED] if has_sam else [COLORS]
    return _Outputs(
        image=gr.Image(
            label="Result",
            interactive=False,
            format="png",
            height=430,
            elem_id="result",
            buttons=["fullscreen"],
        ),
        layers=gr.CheckboxGroup(
            layers, value=layers, label="Layers", elem_id="layers", visible=False
        ),
        sentence=gr.Markdown(_HINT, elem_id="sentence"),
        legend=gr.HTML("", elem_id="legend"),
        download=gr.DownloadButton(
            "Download labels, overlay and JSON (ZIP)", visible=False, elem_id="download"
        ),
    )


def _connect(actions: "_Actions", given: _Inputs, shown: _Outputs) -> None:
    """What happens when."""
    view = gr.State(None, time_to_live=_KEPT_SECONDS)
    everything = [view, *shown]
    # The worker's places bound how many requests are in work, and say so.
    work: dict[str, Any] = {
        "preprocess": False,
        "api_visibility": "private",
        "concurrency_limit": None,
        "show_progress_on": shown.image,
    }
    asked = [given.image, given.names, given.background, given.threshold, shown.layers]
    given.start.click(actions.segment, asked, everything, **work)
    shown.image.select(
        actions.click,
        [view, given.image, shown.layers],
        [view, shown.image, shown.sentence],
        **work,
    )
    given.image.change(actions.clear, None, everything, api_visibility="private")
    shown.layers.change(
        actions.draw,
        [view, shown.layers],
        shown.image,
        api_visibility="private",
        show_progress="hidden",
    )


def _never_fetch() -> None:
    """Gradio would fetch an image where a request gives an address in place of an upload."""

    async def refuse(url: str, cache_dir: str) -> Any:
        raise gr.Error("upload the image itself", print_exception=False)

    processing_utils.async_ssrf_protected_download = refuse


class _Actions:
    """What happens at the page's events; every error becomes one line on the page.

    Where there is an upload among the inputs, all come as the request has them (``preprocess`` is
    off), because Gradio would open the image with every decoder that Pillow has.
    """

    def __init__(self, service: Service, folder: Path):
        self._service, self._folder = service, folder

    def segment(
        self, upload: Any, names: Any, background: Any, threshold: Any, layers: Any
    ) -> list[Any]:
        """Segment the image, and pack what is to be downloaded."""

        def answer(result: Segmentation) -> tuple[View, str, list[dict[str, Any]]]:
            packed = _pack(result, _stem(upload), self._folder)
            return make_view(result), packed, result.classes

        with self._request("segment"):
            view, packed, classes = self._service.segment(
                self._read(upload),
                _text(names),
                _text(background),
                threshold if isinstance(threshold, int | float) and threshold else None,
                answer,
            )
        text = f"{len(classes)} of {view.num_classes} classes occur."
        if self._service.model.sam is not None:
            text += " **Click a point of the result** to see what SAM takes for the object there."
        return [
            view,
            draw(view, _names(layers)),
            gr.CheckboxGroup(visible=True),
            text,
            legend(classes, view.num_classes),
            gr.DownloadButton(value=packed, visible=True),
        ]

    def click(self, view: View | None, upload: Any, layers: Any, event: gr.SelectData) -> list[Any]:
        """Ask SAM about the point that was clicked."""
        if view is None or self._service.model.sam is None:
            return [view, gr.skip(), gr.skip()]

        def answer(_: SamImage, found: SamMasks) -> tuple[View, int, float]:
            clicked = with_click(view, found, (x, y))
            return clicked, int(found.masks[0].sum()), float(found.iou[0])

        with self._request("masks"):
            x, y = view.to_image(*_pixel(event.index))
            clicked, area, iou = self._service.masks(self._read(upload), answer, points=[[x, y]])
        share = area / (view.size[0] * view.size[1])
        text = (
            f"SAM's mask at ({x:.0f}, {y:.0f}): {area} pixels, {share:.1%} of the image; SAM "
            f"expects an IoU of {iou:.2f} with the true object."
        )
        return [clicked, draw(clicked, _names(layers)), text]

    def draw(self, view: View | None, layers: list[str]) -> Any:
        """Draw the layers that are switched on."""
        return None if view is None else draw(view, layers)

    def clear(self) -> list[Any]:
        """Forget the result of another image."""
        hidden = gr.CheckboxGroup(visible=False)
        return [None, None, hidden, _HINT, "", gr.DownloadButton(visible=False)]

    @contextmanager
    def _request(self, operation: str) -> Iterator[None]:
        service = self._service
        with _one_line_errors(), service.metrics.measure("page", operation), service.worker.place():
            yield

    def _read(self, upload: Any) -> bytes:
        """The bytes of an upload, and of no other file, whatever the request says."""
        if not upload:
            raise RequestError(422, "no image yet: drop one into the first field")
        path = Path(_text(upload.get("path"))).resolve()
        if not path.is_relative_to(self._folder) or not path.is_file():
            raise RequestError(422, "the image is no longer on the server: drop it again")
        with open(path, "rb") as file:
            return file.read(self._service.limits.upload_bytes + 1)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _pixel(index: Any) -> tuple[float, float]:
    """Where a click was, which a request may say wrongly."""
    try:
        x, y = map(float, index)
        if math.isfinite(x) and math.isfinite(y):
            return x, y
    except (TypeError, ValueError, OverflowError):
        pass
    raise RequestError(422, "the click names no pixel: click a point of the result")


def _stem(upload: Any) -> str:
    """For the names of results: letters, digits and a few signs of the upload's name."""
    name = Path(_text(upload.get("orig_name")) or _text(upload.get("path"))).stem
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:60] or "image"


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except SammiError as error:
        message = html.escape(str(error))
    except Exception:
        traceback.print_exc(file=sys.stderr)
        message = "an error of the server; its log describes it"
    else:
        return
    raise gr.Error(message, duration=None, print_exception=False)


def _pack(result: Segmentation, stem: str, parent: Path) -> str:
    """A ZIP with the files of `Segmentation.write`, in a new folder."""
    folder = parent / secrets.token_hex(16)
    folder.mkdir()
    path = folder / f"{stem}_sammi.zip"
    with tempfile.TemporaryDirectory(dir=folder) as files, zipfile.ZipFile(path, "w") as archive:
        for file in result.write(Path(files), stem):
            archive.write(file, file.name)
    return str(path)


def _examples(folder: Path) -> list[list[str]]:
    """Generated scenes, with the names of what is in them and of a few things that may not be."""
    view = VIEWS["os48"]
    examples = []
    for split, index in _EXAMPLES:
        drawn = scene(split, index)
        present = [view.class_names[i] for i in np.unique(view.labels(drawn.classes))]
        names = [*present, *(name for name in _DISTRACTORS if name not in present)]
        path = folder / f"scene_{split}_{index}.png"
        Image.fromarray(drawn.image).save(path)
        examples.append([str(path), ", ".join(names)])
    return examples
