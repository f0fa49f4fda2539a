"""What the API reads and writes, as pydantic models: the checks and the OpenAPI schema."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_ENCODED = "A PNG, JPEG, WebP, TIFF, BMP or GIF file, in base64; a data URL will do."
_FILE = "A PNG, JPEG, WebP, TIFF, BMP or GIF file."

Number = Annotated[float, Field(ge=-100_000, le=100_000)]
Point = Annotated[tuple[Number, Number], Field(description="x, y in pixels from the top left")]
Box = Annotated[
    tuple[Number, Number, Number, Number], Field(description="x0, y0, x1, y1 in pixels")
]
Label = Literal[0, 1]


class _Closed(BaseModel):
    """A misspelled field is an error, not one that is left out."""

    model_config = ConfigDict(extra="forbid")


class SegmentOptions(_Closed):
    """How to segment an image."""

    classes: str | list[str] = Field(
        description='Names with commas between them, or a list; "sofa; couch" are synonyms.',
        examples=["sky, sofa; couch, dog"],
    )
    background: str | None = Field(
        None, description="Name of a class for what is none of the others."
    )
    threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="Pixels whose best score is lower are background.",
    )
    labels_png: bool = Field(
        False, description="Also answer with the label map, a PNG with a palette, in base64."
    )


class SegmentRequest(SegmentOptions):
    """An image and class names, as JSON."""

    image: str = Field(min_length=1, description=_ENCODED)


class SegmentForm(SegmentOptions):
    """An image and class names, as a form."""

    image: bytes = Field(description=_FILE)


class MaskOptions(_Closed):
    """Prompts for SAM, in pixels of the image."""

    points: list[Point] | list[list[Point]] | None = Field(
        None,
        description="Points of one object, or of several objects, each with as many.",
        examples=[[[48, 40]]],
    )
    labels: list[Label] | list[list[Label]] | None = Field(
        None, description="1: the point is on the object; 0: it is not. Default: all are."
    )
    boxes: list[Box] | None = Field(None, description="A box around each object.")
    multimask: bool | None = Field(
        None,
        description="True: three masks a prompt; false: one; default: the best of three for a "
        "single point, else one.",
    )


class MaskRequest(MaskOptions):
    """An image and prompts, as JSON."""

    image: str = Field(min_length=1, description=_ENCODED)


class MaskForm(_Closed):
    """An image and prompts, as a form: points, labels and boxes are JSON texts."""

    image: bytes = Field(description=_FILE)
    points: str | None = Field(None, description="As JSON.", examples=["[[48, 40]]"])
    labels: str | None = Field(None, description="As JSON.", examples=["[1]"])
    boxes: str | None = Field(None, description="As JSON.", examples=["[[10, 10, 80, 60]]"])
    multimask: bool | None = None


class Rle(_Closed):
    """COCO's compressed runs."""

    size: tuple[int, int] = Field(description="height, width")
    counts: str


class ClassShare(_Closed):
    """One class of an image."""

    index: int
    name: str
    pixels: int
    fraction: float
    mean_score: float


class Summary(_Closed):
    """Size, points and classes."""

    height: int
    width: int
    class_names: list[str]
    num_points: int
    num_masks: int
    points: list[tuple[float, float]]
    classes: list[ClassShare] = Field(description="Those that occur, largest first.")


class Annotation(_Closed):
    """All pixels of one class, as in a COCO file."""

    index: int
    segmentation: Rle
    area: int
    bbox: tuple[int, int, int, int] = Field(description="x, y, width, height")
    score: float
    iscrowd: Literal[0]


class Region(_Closed):
    """One of SAM's masks, with the class that most of its pixels have."""

    index: int
    name: str
    share: float
    score: float
    area: int
    bbox: tuple[int, int, int, int]
    segmentation: Rle


class SegmentAnswer(_Closed):
    """A segmented image."""

    summary: Summary
    annotations: list[Annotation]
    regions: list[Region]
    labels_png: str | None = Field(description="The label map in base64, if it was asked for.")


class Mask(_Closed):
    """A mask of SAM."""

    area: int
    bbox: tuple[int, int, int, int]
    predicted_iou: float
    stability_score: float
    segmentation: Rle


class MaskAnswer(_Closed):
    """SAM's masks: one a prompt, or three."""

    height: int
    width: int
    masks: list[Mask]


class Health(_Closed):
    """What the server is and does."""

    status: Literal["ok"]
    version: str
    model: str
    sam: bool = Field(description="Whether /masks can be asked.")
    waiting: int = Field(description="Jobs that wait for the device.")
    open: int = Field(description="Requests that are being read, wait, or are in work.")
    places: int = Field(description="Of open requests; more are answered with 429.")


class Problem(_Closed):
    """Why a request failed, in one line."""

    error: str


def body_schema(json_model: type[BaseModel], form_model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's description of a body that may be JSON or a form."""
    form = form_model.model_json_schema()
    form["properties"]["image"] |= {"contentMediaType": "application/octet-stream"}
    form["properties"]["image"].pop("format", None)
    content = {
        "application/json": {"schema": json_model.model_json_schema()},
        "multipart/form-data": {"schema": form},
    }
    return {"requestBody": {"required": True, "content": content}}
