"""The confusion matrix and the metrics that papers compute from it (both conventions)."""

import numpy as np

from sammi_jax.errors import SammiError
from sammi_jax.typing import Float, Int, NpArray


def confusion_matrix(
    prediction: NpArray, label: NpArray, num_classes: int, ignore_label: int
) -> Int[NpArray, "c c"]:
    """Count pixels by (label, prediction): int64, rows are labels. Ignored pixels count nowhere.

    Args:
        prediction: class indices in 0 .. num_classes - 1, of any integer type and any shape.
        label: class indices or ``ignore_label``, of the same shape.
        num_classes: C.
        ignore_label: the label of pixels that are left out.

    Raises:
        SammiError: shapes differ, values are not integers, or a counted value is out of range.
    """
    prediction, label = np.asarray(prediction), np.asarray(label)
    if prediction.shape != label.shape:
        raise SammiError(f"prediction {prediction.shape} and label {label.shape} differ in shape")
    for name, values in (("prediction", prediction), ("label", label)):
        if not np.issubdtype(values.dtype, np.integer):
            raise SammiError(f"{name} is {values.dtype}: class indices must be integers")
    counted = label != ignore_label
    pairs = {"label": label[counted], "prediction": prediction[counted]}
    for name, values in pairs.items():
        wrong = values[(values < 0) | (values >= num_classes)]
        if wrong.size:
            raise SammiError(
                f"{name} {wrong[0]} is neither in 0..{num_classes - 1} nor the ignore label "
                f"{ignore_label} ({wrong.size} such pixels)"
            )
    # int64 before the product: a narrow label type would overflow
    index = pairs["label"].astype(np.int64) * num_classes + pairs["prediction"].astype(np.int64)
    counts = np.bincount(index, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def scores(confusion: Int[NpArray, "c c"]) -> dict[str, Float[NpArray, " c"] | float]:
    """IoU and accuracies in 0..1 (NaN where no pixel was counted).

    Returns:
        ``iou`` [C]: intersection over union, NaN where the class is not in the label;
        ``miou``: its mean over the classes in the label (detectron2 since 2022, CAT-Seg);
        ``miou_union``: the sum over the classes in label or prediction (mmsegmentation, MESS);
        ``fwiou``: mean weighted by label pixels; ``macc``: mean recall over the classes in the
        label; ``pacc``: fraction of pixels that are right.
    """
    hit = np.diag(confusion).astype(np.float64)
    labeled = confusion.sum(axis=1).astype(np.float64)
    predicted = confusion.sum(axis=0).astype(np.float64)
    union = labeled + predicted - hit
    present = labeled > 0
    iou = np.full(len(confusion), np.nan)
    iou[present] = hit[present] / union[present]
    recall = hit[present] / labeled[present]
    total = labeled.sum()
    return {
        "iou": iou,
        "miou": _mean(iou[present].sum(), present.sum()),
        "miou_union": _mean(iou[present].sum(), (union > 0).sum()),
        "fwiou": _mean((iou[present] * labeled[present]).sum(), total),
        "macc": _mean(recall.sum(), present.sum()),
        "pacc": _mean(hit.sum(), total),
    }


def subset_miou(
    confusion: Int[NpArray, "c c"], classes: tuple[int, ...], *, union: bool = False
) -> float:
    """Mean IoU over those of ``classes`` that are in the label; all classes compete for pixels.

    With ``union``, over those in label or prediction, as MESS's classes of interest.
    """
    chosen = list(classes)
    iou = np.asarray(scores(confusion)["iou"])[chosen]
    present = ~np.isnan(iou)
    counted = present
    if union:
        counted = (confusion.sum(axis=0) + confusion.sum(axis=1))[chosen] > 0
    return _mean(iou[present].sum(), counted.sum())


def boundary_iou(counts: Int[NpArray, "3 c"]) -> Float[NpArray, " c"]:
    """Boundary IoU of each class; NaN where the label has no boundary of it.

    Args:
        counts: boundary pixels in both maps (same class), in the label, in the prediction.
    """
    both, label, prediction = np.asarray(counts, np.float64)
    iou = np.full(len(both), np.nan)
    present = label > 0
    union = label + prediction - both
    iou[present] = both[present] / union[present]
    return iou


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b); 0 where both are 0."""
    return 2 * a * b / (a + b) if a + b else 0.0


def _mean(total: np.floating, count: np.floating | np.integer) -> float:
    return float(total / count) if count else float("nan")
