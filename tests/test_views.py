import jax.numpy as jnp
import numpy as np
import pytest

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
