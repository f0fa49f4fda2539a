"""SAM's masks of an image, drawn and written."""

from typing import Any

import numpy as np
from PIL import Image

from sammi_jax.figures import blend_colors, draw_proposals, palette
from sammi_jax.files import write_json
from sammi_jax.images import load_image, write_image
from sammi_jax.inference.image_files import ImageFile
from sammi_jax.inference.prompting import SamMasks
from sammi_jax.object_store import AnyPath
from sammi_jax.ops.rle import encode_rle


def write_masks(found: SamMasks, image: ImageFile, folder: AnyPath) -> list[AnyPath]:
    """Write ``NAME_masks.png`` and ``NAME_masks.json``; returns the paths.

    Args:
        found: the masks.
        image: the image's file, with the results' name.
        folder: to write to.
    """
    pixels = load_image(image.path)
    # Small masks lie over large ones.
    order = np.argsort(-found.masks.sum(axis=(1, 2)), kind="stable")
    number = np.zeros(pixels.shape[:2], np.int32)
    for place, index in enumerate(order, 1):
        number[found.masks[index]] = place
    colors = palette(len(order))
    shown = pixels.copy()
    covered = number > 0
    shown[covered] = blend_colors(pixels[covered], colors[number[covered] - 1])
    points = np.zeros((0, 2)) if found.points is None else found.points
    paths = [folder / f"{image.name}_masks.png", folder / f"{image.name}_masks.json"]
    write_image(paths[0], Image.fromarray(draw_proposals(shown, found.masks, points)))
    write_json(
        paths[1],
        {
            "image": str(image.place),
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "masks": mask_records(found),
        },
    )
    return paths


def mask_records(found: SamMasks) -> list[dict[str, Any]]:
    """Area, box (x, y, width, height), SAM's IoU, stability and COCO's runs of each mask."""
    return [
        {
            "area": int(mask.sum()),
            "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1] if mask.any() else [0, 0, 0, 0],
            "predicted_iou": round(float(iou), 6),
            "stability_score": round(float(stability), 6),
            "segmentation": encode_rle(mask),
        }
        for mask, iou, stability, (x0, y0, x1, y1) in zip(
            found.masks, found.iou, found.stability, found.boxes.tolist(), strict=True
        )
    ]
