"""The input pipeline: order, shares, resume, crops; and colors against Pillow's and colorsys'."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sammi_jax.data.input.augment import PAD_VALUE, TrainCrop
from sammi_jax.data.input.pipeline import batch_stream, drawn_stream, iterate
from sammi_jax.ops import color

IGNORE = 255


class Squares:
    """Images whose label map is their index, so that the order can be read from a batch."""

    def __init__(self, count, size=(60, 90)):
        self.count, self.size = count, size

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        return {
            "image": rng.integers(0, 256, (*self.size, 3)).astype(np.uint8),
            "label": np.full(self.size, index % 200, np.uint8),
            "file_name": str(index),
        }


CROP = TrainCrop(32, IGNORE)


def stream(count=10, batch_size=4, **settings):
    return batch_stream(Squares(count), [CROP], batch_size=batch_size, seed=5, **settings)


def indices(batch):
    return batch["label"][:, 0, 0].tolist()


def equal(a, b):
    return all(np.array_equal(a[name], b[name]) for name in ("image", "label"))


def test_every_epoch_is_a_new_permutation():
    batches = stream()
    order = [i for k in range(5) for i in indices(batches[k])]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]
    assert batches[0]["image"].shape == (4, 32, 32, 3)
    assert batches[0]["label"].dtype == np.int32


def test_shares_make_the_same_batches():
    whole = stream()
    shares = [stream(process=i, num_processes=2) for i in range(2)]
    for step in (0, 3, 7):
        parts = [share[step] for share in shares]
        for name in ("image", "label"):
            together = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(together, whole[step][name])


def double(indices):
    return {"index": indices, "double": 2 * indices}


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_drawn_examples_are_shared_and_each_drawn_once(num_processes):
    drawn = []

    def draw(indices):
        drawn.extend(indices.tolist())
        return double(indices)

    shares = [
        drawn_stream(draw, 12, batch_size=4, seed=3, process=i, num_processes=num_processes)
        for i in range(num_processes)
    ]
    batches = [np.concatenate([share[k]["double"] for share in shares]) for k in range(6)]
    epochs = np.concatenate(batches).reshape(2, 12) // 2
    assert drawn == epochs.ravel().tolist()  # nothing but its own share, for each process
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0].tolist() != epochs[1].tolist()
    whole = drawn_stream(double, 12, batch_size=4, seed=3)
    np.testing.assert_array_equal(whole[4]["double"], batches[4])
    other = drawn_stream(double, 12, batch_size=4, seed=4)
    assert other[0]["double"].tolist() != batches[0].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_gives_the_next_example(workers):
    expected = [stream()[k] for k in range(6)]
    reader = iterate(stream(), 0, workers)
    assert all(equal(next(reader), batch) for batch in expected[:2])
    reader.close()
    reader = iterate(stream(), 2, workers)
    assert all(equal(next(reader), batch) for batch in expected[2:])
    reader.close()


def test_crop():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 100, 3)).astype(np.uint8)
    label = (np.arange(6400) % 251).reshape(64, 100).astype(np.uint8)
    mirrored = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        out = TrainCrop(64, IGNORE).random_map({"image": image, "label": label}, rng)
        starts = [x for x in range(37) if np.array_equal(image[:, x : x + 64], out["image"])]
        if not starts:
            mirrored += 1
            flipped = out["image"][:, ::-1]
            starts = [x for x in range(37) if np.array_equal(image[:, x : x + 64], flipped)]
            out["label"] = out["label"][:, ::-1]
        assert len(starts) == 1
        np.testing.assert_array_equal(out["label"], label[:, starts[0] : starts[0] + 64])
    assert 0 < mirrored < 20


def test_small_and_long_images():
    long = {"image": np.zeros((10, 2000, 3), np.uint8), "label": np.zeros((10, 2000), np.uint16)}
    out = TrainCrop(64, IGNORE).random_map(long, np.random.default_rng(0))
    rows = 2560 * 10 // 2000  # the long side is held at 2560, so the short one stays below 64
    assert (out["label"][:rows] == 0).all()
    assert (out["label"][rows + 1 :] == IGNORE).all()
    assert (out["image"][rows + 1 :] == PAD_VALUE).all()


def test_hsv_is_exact_to_a_unit():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 40, 3)).astype(np.float32)
    hue, saturation, value = map(np.asarray, color.rgb_to_hsv(jnp.asarray(image)))
    for y, x in np.ndindex(40, 40):
        h, s, v = colorsys.rgb_to_hsv(*(image[y, x] / 255))
        assert abs((hue[y, x] - 180 * h + 90) % 180 - 90) <= 0.5 + 1e-3
        assert abs(saturation[y, x] - 255 * s) <= 0.5 + 1e-3
        assert value[y, x] == pytest.approx(255 * v, abs=1e-3)
        back = np.asarray(colorsys.hsv_to_rgb(hue[y, x] / 180, saturation[y, x] / 255, v)) * 255
        ours = color.hsv_to_rgb(*map(jnp.asarray, (hue[y, x], saturation[y, x], value[y, x])))
        np.testing.assert_allclose(ours, back, atol=0.51)


def test_gray_keeps_its_hue_and_saturation():
    gray = jnp.full((2, 2, 3), 77.0)
    np.testing.assert_array_equal(color.saturate(gray, jnp.asarray(1.5)), gray)
    np.testing.assert_array_equal(color.rotate_hue(gray, jnp.asarray(18)), gray)


def test_jitter():
    image = np.asarray(Image.linear_gradient("L").resize((16, 16)), np.float32)
    images = np.stack([np.stack([image, image[::-1], image.T], axis=-1)] * 64)
    jittered = np.asarray(jax.jit(color.jitter_colors)(images, jax.random.key(0)))
    assert jittered.min() >= 0
    assert jittered.max() <= 255
    np.testing.assert_array_equal(jittered, np.round(jittered))
    assert len({array.tobytes() for array in jittered}) > 55, "images share their jitter"
    again = np.asarray(jax.jit(color.jitter_colors)(images, jax.random.key(0)))
    np.testing.assert_array_equal(jittered, again)
    assert abs(jittered.mean() - images.mean()) < 15
