"""How good a SAM's masks are: one point in each region that a data set knows.

The point is the region's most interior pixel, and the mask is SAM's first multimask output, which
means the whole object where a SAM was trained here (`training.tasks.prompt`).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from sammi_jax.data.catalogue import Dataset
from sammi_jax.errors import SammiError
from sammi_jax.files import write_atomic, write_json
from sammi_jax.inference.forward import sam_views
from sammi_jax.inference.inputs import sam_input
from sammi_jax.inference.towers import SamModel
from sammi_jax.object_store import AnyPath
from sammi_jax.typing import Bool, Float, Int, NpArray, UInt8

POINT_BUCKET = 8  # points are padded to a multiple, so that few programs are compiled
SMALL_CELLS = 4  # regions of fewer cells of SAM's embedding count apart


def score_sam(sam: SamModel, dataset: Dataset) -> dict[str, Any]:
    """Scores of SAM's masks on a data set that knows regions (OpenShapes).

    Returns:
        JSON's types: counts of images and regions; mean IoU of the masks with their regions, shares
        above 0.5 and 0.7, and the correlation of SAM's own estimate with the IoU, over regions of
        at least `SMALL_CELLS` cells; count and mean IoU of the smaller ones.

    Raises:
        SammiError: the data set knows no regions.
    """
    regions: Any = getattr(dataset.source, "regions", None)
    if regions is None:
        raise SammiError(f"{dataset.name}: knows no regions to compare masks with; OpenShapes does")
    ious, estimates, cells = [], [], []
    indices = range(len(dataset.source))
    for index in tqdm(indices, desc=dataset.name, unit="image", disable=None, leave=None):
        image, masks = dataset.source[index]["image"], regions(index, "true")
        found, estimate = segment_points(sam, image, interior_points(masks))
        ious.append(mask_ious(found, masks))
        estimates.append(estimate)
        cell = max(image.shape[:2]) / sam.config.grid_size  # pixels along a side
        cells.append(masks.sum(axis=(1, 2)) / cell**2)
    iou, estimate, cell = map(np.concatenate, (ious, estimates, cells))
    large = cell >= SMALL_CELLS
    return {
        "dataset": dataset.name,
        "images": len(indices),
        "regions": int(large.sum()),
        "mean_iou": float(iou[large].mean()),
        "above_0.5": float((iou[large] > 0.5).mean()),
        "above_0.7": float((iou[large] > 0.7).mean()),
        "correlation": float(np.corrcoef(iou[large], estimate[large])[0, 1]),
        "small_regions": int((~large).sum()),
        "small_mean_iou": float(iou[~large].mean()) if (~large).any() else None,
    }


def interior_points(masks: Bool[NpArray, "n h w"]) -> Int[NpArray, "n 2"]:
    """The pixel (x, y) of each mask that is farthest from its outline and from the frame."""
    points = []
    for mask in masks:
        depth: Any = ndimage.distance_transform_edt(np.pad(mask, 1))
        y, x = np.unravel_index(np.argmax(depth[1:-1, 1:-1]), mask.shape)
        points.append((x, y))
    return np.array(points, np.int64).reshape(-1, 2)


def segment_points(
    sam: SamModel, image: UInt8[NpArray, "h w 3"], points: Int[NpArray, "n 2"]
) -> tuple[Bool[NpArray, "n h w"], Float[NpArray, " n"]]:
    """SAM's first multimask output for each pixel (x, y), and the IoU that it expects of it."""
    pixels, size = sam_input(image, sam.config.image_size)
    prepared = sam_views(jnp.asarray(pixels[None]), jnp.asarray(size[None]))
    embedding = sam.encode_image(prepared.images)
    height, width = image.shape[:2]
    # SAM counts pixels from their corner and adds the half to the center itself.
    placed = (points + 0.5) * (size[::-1] / np.array([width, height])) - 0.5
    padding = -len(points) % POINT_BUCKET
    placed = np.pad(placed, ((0, padding), (0, 0)))
    labels = np.where(np.arange(len(placed)) < len(points), 1, -1)
    logits, estimate = sam.decode(embedding, jnp.asarray(placed[None]), jnp.asarray(labels[None]))
    inside = np.ceil(size * sam.config.mask_size / sam.config.image_size).astype(int)
    masks = np.asarray(logits[0, : len(points), 0, : inside[0], : inside[1]])
    resized = [
        np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR))
        for mask in masks
    ]
    return np.array(resized) > 0.0, np.asarray(estimate[0, : len(points), 0])


def mask_ious(
    found: Bool[NpArray, "n h w"], wanted: Bool[NpArray, "n h w"]
) -> Float[NpArray, " n"]:
    """Intersection over union of pairs of masks, of which one at least has a pixel."""
    return (found & wanted).sum(axis=(1, 2)) / (found | wanted).sum(axis=(1, 2))


def write_sam_scores(records: list[dict[str, Any]], model_folder: AnyPath, workdir: AnyPath) -> str:
    """Write ``results.json`` and ``results.md``; the table."""
    names = [name for name in records[0] if name != "dataset"]
    lines = [f"| data set | {' | '.join(name.replace('_', ' ') for name in names)} |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for record in records:
        values = [_shown(record[name]) for name in names]
        lines.append(f"| {record['dataset']} | {' | '.join(values)} |")
    table = "\n".join(lines)
    write_json(workdir / "results.json", {"model": str(model_folder), "results": records})
    write_atomic(workdir / "results.md", f"# {model_folder}\n\n{table}\n")
    return table


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"
