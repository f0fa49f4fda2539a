import dataclasses

import jax
import numpy as np
import pytest
from scipy.sparse import csgraph

from sammi_jax import functional
from sammi_jax.config.model import SmaggConfig
from sammi_jax.models.smagg import mask_graph, unite_masks

CONFIG = SmaggConfig()
components = jax.jit(functional.connected_components)
aggregate = jax.jit(functional.aggregate_masks, static_argnums=4)
graph = jax.jit(mask_graph, static_argnums=4)


def smallest_index(adjacency):
    """scipy's components, each named by its smallest member."""
    _, labels = csgraph.connected_components(adjacency, directed=False)
    return np.array([np.flatnonzero(labels == label)[0] for label in labels])


def symmetric(adjacency):
    return adjacency | adjacency.T


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 16, 33, 64])
def test_components_of_random_graphs(rng, num_nodes):
    density = rng.choice([0.0, 0.5, 1.0, 1.5, 3.0], size=40) / num_nodes
    graphs = np.stack([symmetric(rng.random((num_nodes, num_nodes)) < p) for p in density])
    expected = np.stack([smallest_index(adjacency) for adjacency in graphs])
    np.testing.assert_array_equal(components(graphs), expected)


def test_components_are_undirected(rng):
    graphs = rng.random((20, 24, 24)) < 0.03
    expected = np.stack([smallest_index(adjacency) for adjacency in graphs])
    np.testing.assert_array_equal(components(graphs), expected)


def chain(order):
    adjacency = np.zeros((len(order), len(order)), bool)
    adjacency[order[:-1], order[1:]] = True
    return symmetric(adjacency)


@pytest.mark.parametrize("length", [2, 3, 127, 128, 129])
def test_components_of_long_chains(rng, length):
    """A path through all nodes is the case that a fixed number of label steps gets wrong."""
    whole = np.stack([chain(np.arange(length)), chain(rng.permutation(length))])
    assert not np.any(components(whole))
    cut = whole.copy()
    cut[0, length // 2, length // 2 - 1] = cut[0, length // 2 - 1, length // 2] = False
    np.testing.assert_array_equal(components(cut)[0], smallest_index(cut[0]))
    assert len(set(np.asarray(components(cut)[0]).tolist())) == 2


def squares(boxes, size=12):
    masks = np.zeros((1, len(boxes), size, size), bool)
    for n, (y0, x0, y1, x1) in enumerate(boxes):
        masks[0, n, y0:y1, x0:x1] = True
    return masks


def constant(value, size=12):
    return np.broadcast_to(np.asarray(value, np.float32), (1, size, size, len(value)))


def merged(masks, valid=None, features=None, distributions=None, config=CONFIG):
    valid = np.ones(masks.shape[:2], bool) if valid is None else valid
    features = constant([1.0, 2.0]) if features is None else features
    distributions = constant([0.5, 0.5]) if distributions is None else distributions
    return [np.asarray(x) for x in aggregate(masks, valid, features, distributions, config)]


def test_touching_parts_become_their_union():
    masks = squares([(0, 0, 4, 4), (0, 4, 4, 8), (8, 8, 12, 12)])
    united, valid = merged(masks)
    assert valid.tolist() == [[True, False, True]]
    np.testing.assert_array_equal(united[0, 0], masks[0, 0] | masks[0, 1])
    assert not united[0, 1].any()
    np.testing.assert_array_equal(united[0, 2], masks[0, 2])


@pytest.mark.parametrize(
    ("gap", "dilation", "touch"),
    [(0, 0, False), (0, 1, True), (1, 1, True), (2, 1, False), (3, 2, True), (4, 2, False)],
)
def test_masks_touch_where_they_overlap_after_growing(gap, dilation, touch):
    masks = squares([(0, 0, 3, 3), (0, 3 + gap, 3, 6 + gap)])
    _, valid = merged(masks, config=dataclasses.replace(CONFIG, dilation=dilation))
    assert valid.tolist() == [[True, not touch]]


def test_a_mask_inside_another_joins_it():
    masks = squares([(0, 0, 9, 9), (3, 3, 6, 6)])
    _, valid = merged(masks, config=dataclasses.replace(CONFIG, dilation=0))
    assert valid.tolist() == [[True, False]]


def test_unlike_parts_stay_apart():
    masks = squares([(0, 0, 6, 6), (0, 6, 6, 12)])
    two = np.zeros((1, 12, 12, 2), np.float32)
    two[..., :6, 0] = two[..., 6:, 1] = 1
    for united, valid in (merged(masks, features=two), merged(masks, distributions=two)):
        assert valid.all()
        np.testing.assert_array_equal(united, masks)
    assert merged(masks)[1].tolist() == [[True, False]]


@pytest.mark.parametrize("field", ["features", "distributions"])
def test_the_similarity_thresholds(field):
    masks = squares([(0, 0, 6, 6), (0, 6, 6, 12)])
    values = np.zeros((1, 12, 12, 2), np.float32)
    values[..., :6, :] = (1, 0)
    values[..., 6:, :] = (0.8, 0.6)  # cosine 0.8
    name = {"features": "min_feature_similarity", "distributions": "min_class_similarity"}[field]
    for threshold, joined in [(0.79, True), (0.81, False)]:
        _, valid = merged(
            masks,
            features=values if field == "features" else None,
            distributions=values if field == "distributions" else None,
            config=dataclasses.replace(CONFIG, **{name: threshold}),
        )
        assert valid.tolist() == [[True, not joined]]


def test_parts_smaller_than_a_cell_of_the_features_are_joined():
    """Over-segmentation: strips of one pixel where a cell of the features has four."""
    masks = np.zeros((1, 4, 24, 24), bool)
    for strip in range(3):
        masks[0, strip, :3, strip] = True
    masks[0, 3, 20:, 20:] = True
    united, valid = merged(masks, features=constant([1.0, 2.0], 6),
                           distributions=constant([0.5, 0.5], 6))  # fmt: skip
    assert valid.tolist() == [[True, False, False, True]]
    np.testing.assert_array_equal(united[0, 0], masks[0, :3].any(0))


def test_masks_touch_at_their_own_resolution():
    """Two masks with a gap of three pixels lie in neighboring cells of four, and do not touch."""
    masks = squares([(0, 0, 4, 3), (0, 6, 4, 10)], size=24)
    cells = {"features": constant([1.0], 6), "distributions": constant([1.0], 6)}
    assert merged(masks, **cells)[1].all()
    two = dataclasses.replace(CONFIG, dilation=2)
    assert merged(masks, **cells, config=two)[1].tolist() == [[True, False]]


def test_an_invalid_mask_is_no_bridge():
    masks = squares([(0, 0, 3, 3), (0, 3, 3, 6), (0, 6, 3, 9)])
    assert merged(masks)[1].tolist() == [[True, False, False]]
    united, valid = merged(masks, valid=np.array([[True, False, True]]))
    assert valid.tolist() == [[True, False, True]]
    np.testing.assert_array_equal(united[0, 0], masks[0, 0])
    assert not united[0, 1].any()


def scene(rng, num_masks=14, size=20):
    """Random boxes over three regions of features, some slots invalid; two images."""
    boxes = rng.integers(0, size - 4, size=(2, num_masks, 2))
    sides = rng.integers(2, 7, size=(2, num_masks, 2))
    masks = np.zeros((2, num_masks, size, size), bool)
    for index in np.ndindex(2, num_masks):
        (y, x), (h, w) = boxes[index], sides[index]
        masks[index][y : y + h, x : x + w] = True
    region = np.arange(size)[None, :] * 3 // size + np.zeros((2, size, 1), int)
    features = np.eye(3)[region] + 0.2 * rng.random((2, size, size, 3))
    distributions = rng.dirichlet([5.0] * 4, size=(2, size, size))
    valid = rng.random((2, num_masks)) < 0.8
    return masks, valid, features.astype(np.float32), distributions.astype(np.float32)


def graph_naive(masks, valid, features, distributions, config):
    num_masks = len(masks)
    grown = np.zeros_like(masks)
    for n, y, x in np.argwhere(masks):
        d = config.dilation
        grown[n, max(y - d, 0) : y + d + 1, max(x - d, 0) : x + d + 1] = True
    adjacency = np.zeros((num_masks, num_masks), bool)
    for i in range(num_masks):
        for j in range(num_masks):
            both, smaller = (masks[i] & masks[j]).sum(), min(masks[i].sum(), masks[j].sum())
            touch = (grown[i] & grown[j]).any() or both / smaller >= config.min_containment
            cosines = []
            for values in (features, distributions):
                a, b = values[masks[i]].mean(0), values[masks[j]].mean(0)
                cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            alike = (
                cosines[0] >= config.min_feature_similarity
                and cosines[1] >= config.min_class_similarity
            )
            adjacency[i, j] = touch and alike and valid[i] and valid[j]
    return adjacency


@pytest.mark.parametrize("seed", range(4))
def test_against_plain_numpy(seed):
    masks, ok, features, distributions = args = scene(np.random.default_rng(seed))
    config = dataclasses.replace(CONFIG, min_feature_similarity=0.8)
    edges = graph(masks, ok, features, distributions, config)
    united, valid = aggregate(masks, ok, features, distributions, config)
    for b in range(2):
        one = [x[b] for x in args]
        adjacency = graph_naive(one[0], one[1], one[2], one[3], config)
        np.testing.assert_array_equal(edges[b], adjacency)
        labels = smallest_index(adjacency)
        assert 1 < len(set(labels[one[1]])) < one[1].sum()  # some merge, not all
        for n in range(len(labels)):
            members = (labels == n) & one[1]
            assert valid[b, n] == members.any()
            np.testing.assert_array_equal(united[b, n], one[0][members].any(0))


def as_set(masks, valid):
    return {mask.tobytes() for mask, ok in zip(np.asarray(masks), valid, strict=True) if ok}


@pytest.mark.parametrize("seed", range(4))
def test_order_and_padding_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    masks, valid, features, distributions = scene(rng)
    united, ok = aggregate(masks, valid, features, distributions, CONFIG)
    order = rng.permutation(masks.shape[1])
    shuffled = aggregate(masks[:, order], valid[:, order], features, distributions, CONFIG)
    more = np.concatenate([masks, rng.random((2, 5, *masks.shape[2:])) < 0.5], axis=1)
    padded_valid = np.concatenate([valid, np.zeros((2, 5), bool)], axis=1)
    padded, padded_ok = aggregate(more, padded_valid, features, distributions, CONFIG)
    num_masks = masks.shape[1]
    for b in range(2):
        assert as_set(shuffled[0][b], shuffled[1][b]) == as_set(united[b], ok[b])
    np.testing.assert_array_equal(padded[:, :num_masks], united)
    np.testing.assert_array_equal(padded_ok[:, :num_masks], ok)
    assert not np.any(padded[:, num_masks:])
    assert not np.any(padded_ok[:, num_masks:])


def test_a_union_has_the_mean_quality_of_its_members():
    member = np.zeros((1, 4, 4), bool)
    member[0, 0, [0, 1, 3]] = True  # 2 is in no union
    masks = squares([(0, 0, 4, 4), (4, 0, 8, 4), (0, 8, 2, 10), (8, 0, 9, 4)])
    quality = np.array([[0.9, 0.6, 0.5, 0.3]], np.float32)
    united, valid, mean = unite_masks(*map(jax.numpy.asarray, (member, masks, quality)))
    np.testing.assert_array_equal(united[0, 0], masks[0, [0, 1, 3]].any(axis=0))
    assert not united[0, 1:].any()
    assert valid.tolist() == [[True, False, False, False]]
    np.testing.assert_allclose(mean[0, 0], 0.6, rtol=1e-6)
