import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sammi_jax import functional
from sammi_jax.config.model import TsppConfig
from sammi_jax.errors import SammiError
from sammi_jax.models.tspp import Tspp, class_distribution, grid_points, tspp_loss
from tests.parity import assert_parity

D, T, P = 24, 5, 2
CONFIG = TsppConfig(num_points=6, dim=16, scale=10.0)
sample_points = jax.jit(functional.sample_points, static_argnums=1)


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def inputs(rng, h=4, w=3):
    features = 5 * rng.normal(size=(2, h, w, D)).astype(np.float32)
    return features, rng.normal(size=(T, P, D)).astype(np.float32)


def class_logits(tspp, *args):
    graphdef, state = nnx.split(tspp)
    return jax.jit(lambda state, *a: nnx.merge(graphdef, state).class_logits(*a))(state, *args)


def distributions(rng, shape, sharpness=3.0):
    """Smooth regions, as the class distributions of a picture have them."""
    logits = rng.normal(size=shape)
    logits = (logits + np.roll(logits, 1, 1) + np.roll(logits, 1, 2)) * sharpness
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("dim", [D, 2 * D])
def test_untrained_heads_give_clips_own_similarity(rng, dim):
    features, text = inputs(rng)
    tspp = Tspp(dataclasses.replace(CONFIG, dim=dim), D, rngs=nnx.Rngs(0))
    classes = unit(unit(text.astype(np.float64)).mean(1))
    expected = 10.0 * unit(features.astype(np.float64)) @ classes.T
    assert_parity(class_logits(tspp, features, text), expected, 1e-5, f"class_logits dim {dim}")


def test_class_logits_with_trained_heads(rng):
    features, text = inputs(rng)
    tspp = Tspp(CONFIG, D, rngs=nnx.Rngs(0))
    visual, textual = (rng.normal(size=(D, 16)).astype(np.float32) for _ in range(2))
    tspp.visual.kernel[...], tspp.textual.kernel[...] = visual, textual
    tspp.log_scale[...], tspp.bias[...] = jnp.log(7.0), jnp.asarray(3.0)  # the bias takes no part
    expected = 7.0 * unit(features @ visual) @ unit(unit(text).mean(1) @ textual).T
    assert_parity(class_logits(tspp, features, text), expected, 1e-5, "class_logits trained")


def test_heads_start_equal_and_semi_orthogonal():
    tspp = Tspp(CONFIG, D, rngs=nnx.Rngs(0))
    visual, textual = np.asarray(tspp.visual.kernel[...]), np.asarray(tspp.textual.kernel[...])
    np.testing.assert_array_equal(visual, textual)
    np.testing.assert_allclose(visual.T @ visual, np.eye(16), atol=1e-6)
    other = Tspp(CONFIG, D, rngs=nnx.Rngs(1)).visual.kernel[...]
    assert np.abs(np.asarray(other) - visual).max() > 0.01
    assert tspp.log_scale[...] == pytest.approx(math.log(10.0))
    assert tspp.bias[...] == 0


def test_distribution_leaves_padded_classes_out(rng):
    logits, class_mask = rng.normal(size=(2, 3, 3, T)).astype(np.float32), np.arange(T) < 3
    distribution = np.asarray(jax.jit(class_distribution)(logits, class_mask))
    assert not distribution[..., 3:].any()
    kept = np.exp(logits[..., :3])
    np.testing.assert_allclose(distribution[..., :3], kept / kept.sum(-1, keepdims=True), rtol=1e-5)


def choose_naive(distribution, num_points, sigma):
    """docs/method.md section 2, one image, cell by cell."""
    distribution = distribution.astype(np.float64)
    h, w, _ = distribution.shape
    score = np.zeros((h, w))
    for y in range(h):
        for x in range(w):
            near = [
                distribution[y, x] @ distribution[v, u]
                for v in range(max(y - 1, 0), min(y + 2, h))
                for u in range(max(x - 1, 0), min(x + 2, w))
            ]
            score[y, x] = distribution[y, x].max() * np.mean(near)
    direction, cells, scores = unit(distribution), [], []
    for _ in range(num_points):
        rounded = np.round(score * 2**16) / 2**16
        y, x = np.unravel_index(rounded.argmax(), score.shape)
        cells.append((x + 0.5, y + 0.5))
        scores.append(rounded[y, x])
        for v in range(h):
            for u in range(w):
                near = math.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * sigma**2))
                score[v, u] *= 1 - direction[v, u] @ direction[y, x] * near
        score[y, x] = 0
    return np.array(cells), np.array(scores)


@pytest.mark.parametrize(("h", "w", "sigma"), [(8, 11, 3.0), (8, 11, 0.7), (2, 4, 2.0)])
def test_choice_is_the_greedy_one(rng, h, w, sigma):
    distribution, num_points = distributions(rng, (3, h, w, T)), h * w // 2
    prompts = sample_points(distribution, num_points, 0.2, sigma)
    for b in range(3):
        cells, scores = choose_naive(distribution[b], num_points, sigma)
        np.testing.assert_array_equal(prompts.cells[b], cells)
        assert_parity(prompts.scores[b], scores, 1e-5, f"scores {h}x{w} {b}")
        np.testing.assert_array_equal(prompts.valid[b], scores >= 0.2)
    assert np.asarray(prompts.valid).any()
    assert not np.asarray(prompts.valid).all()


def test_rounding_does_not_choose_the_points(rng):
    """A picture of four equal parts: each cell has three others that differ by rounding alone."""
    part = distributions(rng, (1, 6, 8, T))
    whole = np.tile(part, (1, 2, 2, 1))
    exact = sample_points(whole, 40, 0.0, 2.0)
    for _ in range(5):
        noise = 1 + rng.uniform(-2e-7, 2e-7, whole.shape).astype("f")
        order = rng.permutation(T)
        found = sample_points((whole * noise)[..., order], 40, 0.0, 2.0)
        np.testing.assert_array_equal(found.cells, exact.cells)


def test_the_threshold_is_met_from_above(rng):
    distribution = distributions(rng, (1, 6, 6, T))
    scores = sample_points(distribution, 5, 0.0, 3.0).scores[0]
    at = sample_points(distribution, 5, scores[2], 3.0)
    above = sample_points(distribution, 5, np.nextafter(scores[2], np.float32(2)), 3.0)
    assert at.valid[0].tolist() == [True, True, True, False, False]
    assert above.valid[0].tolist() == [True, True, False, False, False]


def test_two_regions_give_a_point_inside_each():
    distribution = np.zeros((1, 8, 16, 2), np.float32)
    distribution[:, :, :8, 0] = distribution[:, :, 8:, 1] = 1
    first, second = np.asarray(sample_points(distribution, 8, 0.05, 100.0).cells[0, :2])
    assert first[0] < 7  # cell centers in the left half, not beside the border at x = 8 ...
    assert second[0] > 9  # ... and then in the right half, though the left has room
    valid = sample_points(distribution, 8, 0.05, 100.0).valid[0]
    assert valid.tolist() == [True, True] + [False] * 6


def test_without_the_neighborhood_the_surest_cell_comes_first():
    """One sure cell among others of another class, and a calm region of less sure ones."""
    distribution = np.tile(np.array([0.3, 0.7], "f"), (1, 5, 5, 1))
    distribution[0, 2, 2] = 0.95, 0.05
    first = lambda interior: functional.sample_points(  # noqa: E731
        jnp.asarray(distribution), 1, 0.0, 3.0, interior=interior
    ).cells[0, 0]
    np.testing.assert_array_equal(first(False), [2.5, 2.5])
    assert np.abs(first(True) - 2.5).max() >= 2  # nor one of its neighbors


def test_more_slots_than_cells_leave_the_rest_invalid(rng):
    prompts = sample_points(distributions(rng, (1, 2, 3, T)), 9, 0.0001, 0.5)
    cells = {tuple(cell) for cell in np.asarray(prompts.cells[0])[np.asarray(prompts.valid[0])]}
    assert len(cells) == int(prompts.valid[0].sum()) <= 6
    assert not prompts.valid[0, 6:].any()
    assert not prompts.scores[0, 6:].any()  # a chosen cell is left with exactly nothing


def test_padded_classes_do_not_move_the_points(rng):
    distribution = distributions(rng, (1, 7, 7, T))
    padded = np.concatenate([distribution, np.zeros((1, 7, 7, 4), np.float32)], axis=-1)
    ours, theirs = (sample_points(x, 6, 0.05, 3.0) for x in (distribution, padded))
    np.testing.assert_array_equal(ours.cells, theirs.cells)


def test_the_choice_has_no_gradient(rng):
    def total(distribution):
        return functional.sample_points(distribution, 4, 0.05, 3.0).scores.sum()

    gradient = jax.jit(jax.grad(total))(distributions(rng, (1, 5, 5, T)))
    assert not np.any(gradient)


def test_grid_points_are_the_centers_of_equal_squares():
    prompts = grid_points(4, 24, batch=2)
    assert prompts.cells.shape == (2, 16, 2)
    assert np.asarray(prompts.cells[1, :5]).tolist() == [[3, 3], [9, 3], [15, 3], [21, 3], [3, 9]]
    assert prompts.valid.all()
    assert prompts.scores.shape == (2, 16)


def loss_naive(logits, labels, class_mask, ignore_label):
    total = count = 0.0
    b, h, w, _ = logits.shape
    side_y, side_x = labels.shape[1] // h, labels.shape[2] // w
    for i in range(b):
        for y in range(h):
            for x in range(w):
                cell = labels[
                    i, y * side_y : (y + 1) * side_y, x * side_x : (x + 1) * side_x
                ].ravel()
                seen = cell[cell != ignore_label]
                weight = len(seen) / len(cell)
                for c in np.flatnonzero(class_mask):
                    share = (seen == c).mean() if len(seen) else 0
                    p = 1 / (1 + math.exp(-float(logits[i, y, x, c])))
                    total -= weight * (share * math.log(p) + (1 - share) * math.log(1 - p))
                    count += weight
    return total / count


@pytest.mark.parametrize("ignore_label", [255, 4])  # outside and inside of the classes
def test_loss_against_shares_of_classes(rng, ignore_label):
    logits = 2 * rng.normal(size=(2, 3, 4, T)).astype(np.float32)
    labels = rng.integers(0, 3, size=(2, 12, 8))
    labels[rng.random(labels.shape) < 0.3] = ignore_label
    labels[0, :4, :2] = ignore_label  # a cell without a label
    labels[1, :4, :2] = 7  # a class that is not in the list
    class_mask = np.arange(T) != 3
    compiled = jax.jit(tspp_loss, static_argnums=3)
    loss = compiled(logits, labels, class_mask, ignore_label)
    assert_parity(loss, loss_naive(logits, labels, class_mask, ignore_label), 1e-5, "tspp_loss")
    changed = logits.copy()
    changed[0, 0, 0] = 50  # neither the ignored cell ...
    changed[..., 3] = -50  # ... nor the padded class counts
    np.testing.assert_allclose(compiled(changed, labels, class_mask, ignore_label), loss, rtol=1e-6)


def test_the_loss_of_one_labeled_pixel_is_a_mean_too(rng):
    logits = rng.normal(size=(2, 2, 2, T)).astype(np.float32)
    labels, class_mask = np.full((2, 8, 8), 255), np.arange(T) < 2
    labels[1, 2, 3] = 1
    loss = jax.jit(tspp_loss, static_argnums=3)(logits, labels, class_mask, 255)
    assert_parity(loss, loss_naive(logits, labels, class_mask, 255), 1e-5, "one pixel")


def test_loss_is_zero_where_all_is_ignored_and_finite_far_out(rng):
    labels, class_mask = np.full((1, 4, 4), 255), np.ones(T, bool)
    logits = rng.normal(size=(1, 2, 2, T)).astype(np.float32)
    step = jax.jit(jax.value_and_grad(tspp_loss), static_argnums=3)
    loss, gradient = step(logits, labels, class_mask, 255)
    assert loss == 0
    assert not np.any(gradient)
    assert np.isfinite(step(np.float32(1e4) * logits, labels * 0, class_mask, 255)[0])


def test_labels_must_fill_the_grid():
    with pytest.raises(SammiError, match=r"labels of 10 x 8 pixels .* 4 x 4 cells"):
        tspp_loss(jnp.zeros((1, 4, 4, T)), jnp.zeros((1, 10, 8), int), jnp.ones(T, bool), 255)


def test_the_loss_trains_the_heads_alone(rng):
    features, text = inputs(rng)
    labels = jnp.asarray(rng.integers(0, T, size=(2, 8, 6)))
    tspp = Tspp(CONFIG, D, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(tspp)

    def loss(state, features, text):
        tspp = nnx.merge(graphdef, state)
        logits = tspp.class_logits(features, text) + tspp.bias[...]
        return tspp_loss(logits, labels, jnp.ones(T, bool), 255)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    before, (gradient, of_features, of_text) = step(state, features, text)
    assert not np.any(of_features)
    assert not np.any(of_text)
    leaves = {
        "/".join(map(str, path)): np.abs(g[...]).max() for path, g in nnx.to_flat_state(gradient)
    }
    assert set(leaves) == {"visual/kernel", "textual/kernel", "log_scale", "bias"}
    assert min(leaves.values()) > 0
    for _ in range(20):
        _, (gradient, *_) = step(state, features, text)
        state = jax.tree.map(lambda p, g: p - 0.02 * g, state, gradient)
    assert step(state, features, text)[0] < before
