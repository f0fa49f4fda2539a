import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sammi_jax.config.model import (
    AggregatorConfig,
    MaskConfig,
    SegmenterConfig,
    SlidingConfig,
    check_config,
    view_layout,
)
from sammi_jax.errors import SammiError
from sammi_jax.inference.forward import ViewScores, blend_cosines, blend_logits
from sammi_jax.ops.resize import resize
from sammi_jax.ops.views import ViewLayout, cut_masks, cut_windows, stitch

LAYOUT = ViewLayout(window=3, stride=2, num_windows=2)


def test_counts():
    assert (LAYOUT.canvas, LAYOUT.num_views, LAYOUT.has_global_view) == (5, 5, True)
    assert (ViewLayout(3).canvas, ViewLayout(3).num_views) == (3, 1)


@pytest.mark.parametrize("scale", [1, 4])
def test_stitch_is_the_mean_of_windows_and_global_view(rng, scale):
    side, canvas = 3 * scale, 5 * scale
    maps = rng.normal(size=(2, 5, side, side, 2)).astype("f")
    total, count = np.zeros((2, canvas, canvas, 2)), np.zeros((canvas, canvas, 1))
    for view, (y, x) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        y, x = y * scale, x * scale
        total[:, y : y + side, x : x + side] += maps[:, view]
        count[y : y + side, x : x + side] += 1
    whole = np.asarray(resize(jnp.asarray(maps[:, 4]), (canvas, canvas)))
    np.testing.assert_allclose(
        stitch(jnp.asarray(maps), LAYOUT), (total / count + whole) / 2, atol=1e-6
    )


def test_windows_no_whole_cells_apart_are_blended_in_pixels(rng):
    """CAT-Seg's reference: torch's fold of the windows over the fold of ones, then the mean."""
    config = SegmenterConfig(
        aggregator=AggregatorConfig(grid_size=4),
        crop_size=16,  # 4 pixels a cell
        sliding=SlidingConfig(output_size=28, stride=6),  # one cell and a half
    )
    layout = view_layout(config)
    logits = rng.normal(size=(1, 10, 3, 16, 16)).astype("f")
    blended = blend_logits(ViewScores(jnp.asarray(logits)), config, layout)
    windows = torch.from_numpy(logits[0]).sigmoid()
    columns = windows[:9].reshape(9, 3 * 16 * 16).T[None]
    fold = torch.nn.Fold((28, 28), (16, 16), stride=6)
    local = fold(columns) / fold(torch.ones_like(columns))
    whole = torch.nn.functional.interpolate(windows[9:], (28, 28), mode="bilinear")
    np.testing.assert_allclose(blended, (local + whole) / 2, atol=1e-6)
    cells = jnp.asarray(logits[..., :4, :4])
    assert blend_cosines(ViewScores(cells), config, layout).shape == (1, 3, 28, 28)
    with pytest.raises(SammiError, match="3/2 cells apart"):
        _ = layout.canvas


def test_only_masks_need_whole_cells():
    config = SegmenterConfig(sliding=SlidingConfig(output_size=634, stride=250))
    check_config(config)
    with pytest.raises(SammiError, match="a multiple of a cell's 16 pixels in a model with masks"):
        check_config(dataclasses.replace(config, masks=MaskConfig()))


def test_windows_of_a_canvas_stitch_back_to_it(rng):
    canvas = jnp.asarray(rng.normal(size=(1, 10, 10, 3)).astype("f"))
    windows = cut_windows(canvas, LAYOUT, scale=2)
    assert windows.shape == (1, 4, 6, 6, 3)
    local = 2 * stitch(jnp.concatenate([windows, jnp.zeros((1, 1, 6, 6, 3))], 1), LAYOUT)
    np.testing.assert_allclose(local, canvas, atol=1e-6)


def test_masks_are_cut_like_windows(rng):
    masks = jnp.asarray(rng.random((1, 2, 20, 20)) > 0.5)
    views = cut_masks(masks, LAYOUT)
    assert views.shape == (1, 5, 2, 12, 12)
    np.testing.assert_array_equal(views[0, 1], masks[0, :, :12, 8:])
    np.testing.assert_array_equal(cut_masks(masks, ViewLayout(5))[:, 0], masks)
    assert cut_masks(jnp.ones((1, 1, 20, 20), bool), LAYOUT).all()
