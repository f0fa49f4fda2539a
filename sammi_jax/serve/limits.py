"""What a request may ask for; whatever exceeds it is refused before it costs memory or time."""

import base64
import binascii
import io
import warnings
from dataclasses import dataclass
from typing import Any

from PIL import Image

from sammi_jax.errors import SammiError
from sammi_jax.images import load_image
from sammi_jax.inference.classes import ClassList, make_class_list
from sammi_jax.typing import NpArray, UInt8

# Of `images.FORMATS`, those that browsers and cameras make.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
_OVERHEAD = 2**20  # bytes of a request beside its image


class RequestError(SammiError):
    """A request that is refused, with the HTTP status that says why."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """Of one request, and of all that are in work.

    Attributes:
        upload_bytes: of an image file.
        pixels: of an image, as its header says.
        classes: of a list, synonyms counted.
        name_length: characters of a class name.
        prompts: of SAM in one request.
        points: of all prompts of a request together.
        queue: requests that may wait while another is in work.
        seconds: for reading a request, for waiting, and for the work itself.
    """

    upload_bytes: int = 20 * 10**6
    pixels: int = 25 * 10**6
    classes: int = 200
    name_length: int = 100
    prompts: int = 16
    points: int = 64
    queue: int = 8
    seconds: float = 120.0

    @property
    def body_bytes(self) -> int:
        """Of a whole request, whose image may be written in base64."""
        return -(-self.upload_bytes // 3) * 4 + _OVERHEAD


def decode_base64(text: str) -> bytes:
    """The bytes of an image in base64, with or without the beginning of a data URL.

    Raises:
        RequestError: 422, the text is not base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(422, "image: not base64; encode the bytes of an image file") from error


def read_image(file: bytes, limits: Limits) -> UInt8[NpArray, "h w 3"]:
    """Decode an image file, if it is small enough.

    Raises:
        RequestError: 413, too many bytes or pixels.
        SammiError: not an image of a known format, or damaged.
    """
    if len(file) > limits.upload_bytes:
        raise RequestError(
            413,
            f"the image has {len(file) / 1e6:.3g} MB; at most {limits.upload_bytes / 1e6:g} MB are "
            "accepted (--max-upload-mb)",
        )
    pixels = _pixels(file)
    if pixels is not None and pixels > limits.pixels:
        raise RequestError(
            413,
            f"the image has {pixels / 1e6:.3g} megapixels; at most {limits.pixels / 1e6:g} are "
            "accepted (--max-megapixels)",
        )
    return load_image(file, IMAGE_FORMATS)


def _pixels(file: bytes) -> float | None:
    """As the header says; None where there is none that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(file), formats=IMAGE_FORMATS) as image:
                return float(image.width * image.height)
    except Image.DecompressionBombError:
        return float("inf")
    except Exception:  # `load_image` says what is wrong with the file
        return None


def read_classes(
    class_names: Any, background: str | None, threshold: float | None, limits: Limits
) -> ClassList:
    """Check a list of class names. It is never taken for the path of a file.

    Args:
        class_names: as for `make_class_list`.
        background: as there; "" is none.
        threshold: as there.
        limits: of the list and of its names.

    Raises:
        RequestError: 413, too many or too long names.
        SammiError: as `make_class_list`.
    """
    names = class_names.split(",") if isinstance(class_names, str) else list(class_names)
    texts = [text for name in names for text in name.split(";")]
    if len(texts) > limits.classes:
        raise RequestError(
            413,
            f"classes: {len(texts)} names and synonyms; at most {limits.classes} are accepted "
            "(--max-classes)",
        )
    longest = max([*texts, background or ""], key=len)
    if len(longest) > limits.name_length:
        raise RequestError(
            413,
            f"classes: the name {longest[:20]!r}... has {len(longest)} characters; at most "
            f"{limits.name_length} are accepted",
        )
    return make_class_list(names, (background or "").strip() or None, threshold)


def check_prompts(prompts: dict[str, Any], limits: Limits) -> None:
    """Check how many points and boxes there are.

    Args:
        prompts: ``points`` ``[p, 2]`` or ``[k, p, 2]`` and ``boxes`` ``[4]`` or ``[k, 4]`` as
            lists, or None.
        limits: of their number.

    Raises:
        RequestError: 413, too many.
    """
    points, boxes = prompts.get("points") or [], prompts.get("boxes") or []
    nested = bool(points) and (not points[0] or isinstance(points[0][0], list | tuple))
    count = max(len(points) if nested else 1, len(boxes))
    number = sum(map(len, points)) if nested else len(points)
    if count > limits.prompts or number > limits.points:
        raise RequestError(
            413,
            f"{count} prompts with {number} points in one request; at most {limits.prompts} "
            f"prompts and {limits.points} points are accepted",
        )
