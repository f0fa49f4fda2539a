"""Segment an image with an exported model. It reads the folder that this file lies in.

Needs what requirements.txt beside it lists; it does not need sammi_jax. What it does to images,
class names and probabilities is what sammi_jax does, with the same numbers.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers
from PIL import Image, ImageOps

# Formats that Pillow decodes by itself: for others, such as EPS, it starts programs.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000", "PPM")
CHUNK = 8  # classes whose probabilities at the image's size are in memory at once


class ExportedModel:
    """The programs, weights and tokenizer of an export folder."""

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        tensors = safetensors.numpy.load_file(folder / self.manifest["weights"])
        weights = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
        self._weights = jax.device_put(weights)
        self._programs = [
            (program, _load(folder / program["file"])) for program in self.manifest["programs"]
        ]
        text = self.manifest["text"]
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / text["tokenizer"]))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def _program(self, role: str, num_classes: int):
        """The program of that role for so many classes."""
        for program, call in self._programs:
            low, high = program["classes"]["min"], program["classes"]["max"]
            if program["role"] == role and low <= num_classes and num_classes <= (high or np.inf):
                return call
        raise ValueError(f"no {role} for {num_classes} classes in this folder")

    def token_ids(self, names: list[str]) -> np.ndarray:
        """int32 ``[t, p, l]``: every class in every prompt template."""
        text = self.manifest["text"]
        start, end = (
            self._tokenizer.token_to_id(text[f"{which}_token"]) for which in ("start", "end")
        )
        length = text["context_length"]
        rows = np.zeros((len(names), len(text["templates"]), length), np.int32)
        for row, name in zip(rows, names, strict=True):
            for place, template in zip(row, text["templates"], strict=True):
                prompt = template.replace("{}", name.split(", ")[0].strip())  # the first synonym
                ids = [start, *self._encode(prompt)[: length - 2], end]
                place[: len(ids)] = ids
        return rows

    def _encode(self, prompt: str) -> list[int]:
        try:
            return self._tokenizer.encode(prompt, add_special_tokens=False).ids
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{prompt!r}: the tokenizer has no tokens for it ({error})") from error

    def encode_classes(self, names: list[str]) -> tuple[jax.Array, np.ndarray]:
        """Text features ``[t, p, d]`` and class mask ``[t]``, ``t`` padded to a multiple."""
        ids = self.token_ids(names)
        padding = -len(names) % self.manifest["text"]["class_multiple"]
        ids = np.concatenate([ids, np.repeat(ids[-1:], padding, axis=0)])
        features = self._program("text_encoder", len(ids))(self._weights, ids)
        return features, np.arange(len(ids)) < len(names)

    def prepare(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """The segmenter's arrays of one uint8 RGB image ``[H, W, 3]``, a batch of one."""
        rules = self.manifest["image"]
        if rules["short_side"] is not None:
            pixels = resize_short_side(pixels, rules["short_side"], rules["long_side_limit"])
        padded = pixels
        if rules["pad_multiple"] is not None:
            padded = pad(pixels, rules["pad_multiple"], rules["pad_color"])
        arrays = {"canvas": squash(padded, rules["canvas"])[None]}
        if rules["overview"] is not None:
            arrays["overview"] = squash(pixels, rules["overview"])[None]
        if rules["sam"] is not None:
            arrays["sam_image"], arrays["sam_size"] = sam_input(pixels, rules["sam"])
        return arrays

    def predict(self, arrays, features, mask) -> dict[str, jax.Array]:
        """Class probabilities ``[b, t, O, O]``, and of a SAM-MI its masks and points."""
        return self._program("segmenter", len(mask))(self._weights, arrays, features, mask)

    def segment(self, pixels: np.ndarray, names: list[str]) -> np.ndarray:
        """int32 ``[H, W]``: the index into ``names`` of every pixel of a uint8 RGB image."""
        features, mask = self.encode_classes(names)
        outputs = self.predict(self.prepare(pixels), features, mask)
        maps = outputs["probabilities"][0, : len(names)]
        height, width = pixels.shape[:2]
        rows, columns = taps(maps.shape[1], height), taps(maps.shape[2], width)
        best, labels = (
            np.full((height, width), -1.0, np.float32),
            np.zeros((height, width), np.int32),
        )
        for start in range(0, len(names), CHUNK):
            score, index = (
                np.asarray(x) for x in best_of(maps[start : start + CHUNK], rows, columns)
            )
            better = score > best  # of equal scores the first class wins
            best[better], labels[better] = score[better], start + index[better]
        return labels


def _load(path: Path):
    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)


# --- images: bilinear means PyTorch's, pixel centers at one half, never antialiased ---


def read_image(path: str | Path) -> np.ndarray:
    """An upright image file as uint8 RGB ``[H, W, 3]``; wider values are scaled by their range."""
    with Image.open(path, formats=FORMATS) as file:
        image = ImageOps.exif_transpose(file)
        if not (image.mode.startswith("I") or image.mode == "F"):
            return np.asarray(image.convert("RGB"))
        values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 65535:
        raise ValueError(f"{path}: values from {low:g} to {high:g}; scale them to 0 to 65535")
    if values.dtype.kind == "u" or high > 255:
        scale = 255 / 65535
    else:
        scale = 255.0 if values.dtype.kind == "f" and high <= 1 else 1.0
    gray = np.round(values.astype(np.float64) * scale).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def _pillow_resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _rounded(pixels: np.ndarray, scale: float) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_short_side(pixels: np.ndarray, short: int, limit: int) -> np.ndarray:
    """Antialiased, so that the short side is ``short`` and the long one at most ``limit``."""
    sides = pixels.shape[:2]
    scale = short / min(sides)
    scale *= min(1.0, limit / (max(sides) * scale))
    return _pillow_resize(pixels, *_rounded(pixels, scale))


def pad(pixels: np.ndarray, multiple: int, color: list[float]) -> np.ndarray:
    """Float32, filled with the color below and to the right up to multiples."""
    height, width = pixels.shape[:2]
    size = (-(-height // multiple) * multiple, -(-width // multiple) * multiple, 3)
    padded = np.broadcast_to(np.array(color, np.float32), size).copy()
    padded[:height, :width] = pixels
    return padded


def taps(in_size: int, out_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Between which two inputs each output lies (int32 ``[out, 2]``), and the second's weight."""
    center = np.maximum((np.arange(out_size, dtype=np.float64) + 0.5) * in_size / out_size - 0.5, 0)
    left = np.floor(center)
    return np.clip(left[:, None] + (0, 1), 0, in_size - 1).astype(np.int32), center - left


def squash(pixels: np.ndarray, side: int) -> np.ndarray:
    """Bilinear to a square, float32 ``[side, side, 3]``."""
    rows, columns = (taps(size, side) for size in pixels.shape[:2])
    wide = between_rows(pixels, *rows)
    return np.ascontiguousarray(between_rows(wide.swapaxes(0, 1), *columns).swapaxes(0, 1))


def between_rows(values: np.ndarray, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rows interpolated, float32."""
    weights = weights.astype(np.float32)[:, None, None]
    first, second = (values[places[:, i]].astype(np.float32) for i in (0, 1))
    return first * (1 - weights) + second * weights


def sam_input(pixels: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """SAM's zero-padded square, uint8 ``[1, side, side, 3]``, and the size inside it ``[1, 2]``."""
    height, width = _rounded(pixels, side * 1.0 / max(pixels.shape[:2]))
    padded = np.zeros((1, side, side, 3), np.uint8)
    padded[0, :height, :width] = _pillow_resize(pixels, height, width)
    return padded, np.array([[height, width]], np.float32)


@jax.jit
def best_of(maps, rows, columns):
    """The largest of the maps ``[t, h, w]`` at every pixel, and which one it is."""
    for axis, (places, weights) in ((1, rows), (2, columns)):
        weights = jnp.asarray(weights, jnp.float32).reshape((-1, 1) if axis == 1 else (1, -1))[None]
        first, second = (jnp.take(maps, places[:, i], axis=axis) for i in (0, 1))
        maps = first * (1 - weights) + second * weights
    return jnp.max(maps, axis=0), jnp.argmax(maps, axis=0)


# --- the command ---


def read_names(text: str) -> list[str]:
    """Class names from ``"cat, dog"`` or from a file with one name a line."""
    is_file = len(text) < 256 and Path(text).is_file()
    lines = Path(text).read_text(encoding="utf-8-sig").splitlines() if is_file else text.split(",")
    names = [line.strip() for line in lines if line.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError("--classes: give at least one name, and each name once")
    return names


def label_image(labels: np.ndarray, num_classes: int) -> Image.Image:
    """Class indices with a palette; 16-bit gray beyond 256 classes."""
    if num_classes > 256:
        return Image.fromarray(labels.astype(np.uint16))
    index, colors = np.arange(1, num_classes + 1), np.zeros((num_classes, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(colors.astype(np.uint8).ravel().tolist())
    return image


def main() -> int:
    """Write the label map of one image and print the classes in it."""
    parser = argparse.ArgumentParser(
        description="Segment an image into the named classes with the exported model beside this "
        "script.",
        epilog='example: python run_exported.py photo.jpg --classes "wall, sky" --out labels.png',
    )
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument(
        "--classes", required=True, metavar="NAMES",
        help='class names such as "cat, dog", or a file with one name a line',
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="PNG", help="label map to write")
    args = parser.parse_args()
    try:
        names, pixels = read_names(args.classes), read_image(args.image)
        labels = ExportedModel(Path(__file__).parent).segment(pixels, names)
        label_image(labels, len(names)).save(args.out)
    except (OSError, ValueError) as error:
        print(f"run_exported: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    for index in np.argsort(-np.bincount(labels.ravel(), minlength=len(names)), kind="stable"):
        if share := (labels == index).mean():
            print(f"{100 * share:5.1f}%  {names[index]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
