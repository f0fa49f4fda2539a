"""The scores of a SAM's masks, against plain numpy."""

from types import SimpleNamespace

import numpy as np
import pytest

from sammi_jax.data.catalogue import open_dataset
from sammi_jax.errors import SammiError
from sammi_jax.evaluation import sam_masks
from sammi_jax.evaluation.sam_masks import interior_points, mask_ious, score_sam, segment_points
from sammi_jax.inference.towers import SamModel


class Sam(SamModel):
    """Answers with a square around the point, and half of its x in the image as the estimate."""

    config = SimpleNamespace(image_size=64, grid_size=8, mask_size=32)

    def __init__(self):
        pass

    def encode_image(self, images):
        assert images.shape == (1, 64, 64, 3)
        return images

    def decode(self, embedding, points, labels):
        assert points.shape[1] % sam_masks.POINT_BUCKET == 0
        points = np.asarray(points)
        y, x = np.mgrid[:32, :32] * 2 + 0.5
        inside = np.maximum(
            abs(x - points[0, :, 0, None, None]), abs(y - points[0, :, 1, None, None])
        )
        logits = np.where(inside <= 8, 1.0, -1.0).astype(np.float32)
        logits = np.stack([logits, -logits, -logits], axis=1)
        return logits[None], np.repeat(points[:, :, :1] / 64, 3, axis=-1)


def test_the_most_interior_pixel():
    masks = np.zeros((3, 20, 30), bool)
    masks[0, 2:9, 4:11] = True  # a square: its center
    masks[1, 12:19, 2:25] = masks[1, 15, :] = True  # a bar with thin ends
    masks[2, :, 20:] = True  # at the frame, which counts as an outline
    points = interior_points(masks)
    np.testing.assert_array_equal(points[0], [7, 5])
    assert points[1][1] == 15
    assert 5 <= points[1][0] <= 21
    assert 23 <= points[2][0] <= 26
    assert all(mask[y, x] for mask, (x, y) in zip(masks, points, strict=True))


def test_masks_come_back_in_the_images_own_pixels():
    image = np.zeros((24, 48, 3), np.uint8)  # SAM sees 32 x 64
    masks, estimate = segment_points(Sam(), image, np.array([[12, 8], [40, 16]]))
    assert masks.shape == (2, 24, 48)
    for mask, (x, y) in zip(masks, ((12, 8), (40, 16)), strict=True):
        rows, columns = np.nonzero(mask)
        assert abs(rows.mean() - y) < 1
        assert abs(columns.mean() - x) < 1
        assert abs(len(rows) - 144) < 40  # 16 x 16 pixels of SAM's are 12 x 12 here
    np.testing.assert_allclose(estimate, np.array([12.5, 40.5]) / 48 - 0.5 / 64, atol=1e-6)


def test_scores_are_means_over_regions_and_small_ones_count_apart():
    dataset = open_dataset("os48/val_seen", 3)
    record = score_sam(Sam(), dataset)
    ious, sizes, estimates = [], [], []
    for index in range(3):
        regions = dataset.source.regions(index, "true")
        found, estimate = segment_points(
            Sam(), dataset.source[index]["image"], interior_points(regions)
        )
        ious += list(mask_ious(found, regions))
        sizes += [region.sum() for region in regions]
        estimates += list(estimate)
    large = np.array(sizes) >= sam_masks.SMALL_CELLS * 12**2
    assert record["regions"] == large.sum()
    assert record["small_regions"] == (~large).sum()
    assert record["mean_iou"] == pytest.approx(np.array(ious)[large].mean())
    assert record["above_0.5"] == pytest.approx((np.array(ious)[large] > 0.5).mean())
    correlation = np.corrcoef(np.array(ious)[large], np.array(estimates)[large])[0, 1]
    assert record["correlation"] == pytest.approx(correlation)


def test_a_set_without_regions_is_an_error():
    dataset = open_dataset("os48/val_seen", 3)

    class Plain:
        pass

    object.__setattr__(dataset, "source", Plain())
    with pytest.raises(SammiError, match="os48/val_seen: knows no regions"):
        score_sam(Sam(), dataset)
