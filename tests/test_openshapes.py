import ast
import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from sammi_jax.config.model import SegmenterConfig
from sammi_jax.data import openshapes
from sammi_jax.data.openshapes import VIEWS, OpenShapes, build_tokenizer, scene
from sammi_jax.data.openshapes.banks import OUTLINE, TEXTURED, banks, wave
from sammi_jax.data.openshapes.bits import STREAMS, between, chance, raw_words
from sammi_jax.data.openshapes.vocabulary import SEEN_PAIRS, SEEN_STUFF, UNSEEN_PAIRS, UNSEEN_STUFF
from sammi_jax.errors import SammiError

OS48 = VIEWS["os48"]


def digest(*arrays):
    """First 16 digits of a sha256 over little-endian bytes, shapes and types."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.name}{array.shape}".encode())
        total.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()[:16]


def all_maps(drawn):
    return drawn.image, drawn.classes, drawn.instances, drawn.codes, drawn.parts


@pytest.fixture(scope="module")
def train():
    return [scene("train", i) for i in range(200)]


@pytest.fixture(scope="module")
def val_unseen():
    return [scene("val_unseen", i) for i in range(400)]


# The pixels themselves. A change of these numbers is a change of the data set: results on it no
# longer compare with earlier ones.


def test_banks_are_pinned():
    assert digest(banks().shapes) == "7de03b6b964daa78"
    assert digest(banks().textures) == "96b6ea862e1ea27b"
    assert digest(banks().stuff) == "466a566b461ad404"


def test_scenes_are_pinned():
    def maps(split, count, **options):
        return itertools.chain(*(all_maps(scene(split, i, **options)) for i in range(count)))

    assert digest(*maps("train", 32)) == "b1db434b94aa8e6d"
    assert digest(*maps("val_seen", 4)) == "9c87f3d38a4e532d"
    assert digest(*maps("val_unseen", 4)) == "c322eea0b3175bea"
    assert digest(*maps("train", 4, seed=1, size=192)) == "1cee2a16394e85f8"


def test_captions_and_points_are_pinned():
    for regime, expected in (("web", "305a4981302a5917"), ("strict", "a21b52cdb3985f35")):
        b = openshapes.caption_batch(range(32), regime=regime)
        text = np.frombuffer("\n".join(b.captions).encode(), np.uint8)
        assert digest(b.image, b.named, b.attributes, text) == expected
    points = openshapes.point_targets(scene("train", 0), 8, index=0)
    assert digest(*points) == "dea5781167cbcffa"


def test_no_floating_point_anywhere():
    """Floats only in libm could flip a pixel, so none are used: no literal, division or float."""
    folder = Path(openshapes.__file__).parent
    names = {"float", "float32", "float64", "sin", "cos", "sqrt", "exp", "mean", "math", "random"}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), where
            assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)), where
            if isinstance(node, ast.Attribute) and ast.unparse(node) != "np.random":
                assert node.attr not in names, where
    for bank in (banks().shapes, banks().textures, banks().stuff):
        assert bank.dtype == np.uint8


def test_draws_are_uniform_and_independent_of_order(train):
    forward = openshapes.batch("train", [3, 9, 4])
    backward = openshapes.batch("train", [4, 9, 3])
    for name in forward:
        np.testing.assert_array_equal(forward[name], backward[name][::-1])
    np.testing.assert_array_equal(forward["image"][1], train[9].image)
    np.testing.assert_array_equal(forward["instances"][1], train[9].instances)
    assert not np.array_equal(scene("train", 0, seed=1).image, train[0].image)
    assert not np.array_equal(scene("val_seen", 0).image, train[0].image)
    blocks = [tuple(raw_words(0, stream, i, 4)) for stream in STREAMS for i in range(3)]
    assert len(set(blocks)) == len(blocks)

    words = raw_words(0, "train", 0, 60000).tolist()
    counts = np.bincount([between(w, 0, 5) for w in words], minlength=6)
    assert counts.min() > 9600
    assert counts.max() < 10400
    assert [between(0, -3, 7), between(2**64 - 1, -3, 7)] == [-3, 7]
    assert abs(np.mean([chance(w, 30) for w in words]) - 0.3) < 0.01


def test_scene_contents(train):
    for drawn in train[:20]:
        assert drawn.image.shape == (96, 96, 3)
        assert drawn.image.dtype == np.uint8
        assert (drawn.classes.dtype, drawn.instances.dtype) == (np.int16, np.int16)
        assert drawn.parts.dtype == np.int32
        for instance in np.unique(drawn.instances):
            mask = drawn.instances == instance
            (kind,) = np.unique(drawn.classes[mask])
            codes = set(np.unique(drawn.codes[mask]))
            assert codes <= ({0, 4} if kind >= 144 else {1, 2, 3, 6, 7})
            if kind < 36:  # plain
                assert codes <= {1, 2, 3}


def test_colors_are_those_of_the_names(train):
    """The class's color is the nearest of the palette's hues to the object's untextured half."""
    palette = np.array(
        [
            (214, 40, 40),
            (46, 160, 67),
            (45, 85, 215),
            (238, 208, 40),
            (140, 60, 185),
            (240, 130, 35),
        ]
    )
    palette = palette / np.linalg.norm(palette, axis=1, keepdims=True)
    right = []
    for drawn in train:
        for instance in np.unique(drawn.instances):
            mask = (drawn.instances == instance) & (drawn.codes == 2)
            if mask.sum() < 20:
                continue
            color = drawn.image[mask].mean(0)
            right.append((palette @ color).argmax() == drawn.classes[mask][0] // 6 % 6)
    assert len(right) > 400
    assert np.mean(right) > 0.995


def test_numbers_of_regions(train):
    """About six instances a scene, and parts enough that a SAM over-segments them."""
    instances = np.mean([len(np.unique(s.instances)) for s in train])
    parts = np.mean([s.parts.max() for s in train])
    print(f"per scene: {instances:.2f} instances, {parts:.1f} parts")
    assert 5.6 < instances < 6.3
    assert 100 < parts < 250


def test_classes_of_the_views():
    assert len(OS48.class_names) == OS48.num_classes == 48
    assert (len(OS48.seen), len(OS48.unseen)) == (36, 12)
    assert OS48.class_names[7] == "striped green thing"
    assert OS48.class_names[24 + 2] == "blue waves"
    os168 = VIEWS["os168"]
    assert len(os168.class_names) == os168.num_classes == 168
    assert (len(os168.seen), len(os168.unseen)) == (126, 42)
    assert os168.class_names[36] == "striped red circle"
    osb = VIEWS["os-b"]
    assert (len(osb.class_names), osb.num_classes) == (48, 25)
    assert set(osb.merge[24:]) == {24}
    assert (len(osb.seen), len(osb.unseen)) == (19, 6)
    for view in VIEWS.values():
        assert len(set(view.class_names)) == len(view.class_names)
        assert sorted(view.seen + view.unseen) == list(range(view.num_classes))
        # one id, one name: what os168 calls it, the view calls it, but for the shape
        for number, name in enumerate(os168.class_names):
            names = {n for n, c in zip(view.class_names, view.merge, strict=True)
                     if c == view.class_table[number]}  # fmt: skip
            expected = name if view.name == "os168" or number >= 144 else (
                name.rsplit(" ", 1)[0] + " thing")  # fmt: skip
            assert expected in names


def test_unseen_rule():
    """Each color loses one texture, each texture one or two colors; every word is still seen."""
    assert sorted(c for _, c in UNSEEN_PAIRS) == [0, 1, 2, 3, 4, 5]
    assert {t for t, _ in UNSEEN_PAIRS} == {0, 1, 2, 3}
    assert (len(SEEN_PAIRS), len(SEEN_STUFF), len(UNSEEN_STUFF)) == (18, 18, 6)
    for view in (OS48, VIEWS["os168"]):
        seen = {word for i in view.seen for word in view.class_names[i].split()}
        assert seen == {word for name in view.class_names for word in name.split()}


def test_views_label_and_cut(train):
    classes = np.stack([s.classes for s in train[:8]])
    os48, os168 = OS48.labels(classes), VIEWS["os168"].labels(classes)
    np.testing.assert_array_equal(os168, classes)
    np.testing.assert_array_equal(os48, np.where(classes < 144, classes // 6, classes - 120))
    np.testing.assert_array_equal(VIEWS["os-b"].labels(classes), np.minimum(os48, 24))
    assert os48.dtype == np.uint8
    cut = OS48.only_seen()
    assert cut.num_classes == len(cut.class_names) == 36
    labels = cut.labels(classes)
    assert labels.max() < 36
    for ours in np.unique(labels):
        (old,) = np.unique(os48[labels == ours])
        assert cut.class_names[ours] == OS48.class_names[old]
    assert (cut.labels(np.arange(168)) == 255).sum() == 42
    with pytest.raises(SammiError, match="share a class"):
        VIEWS["os-b"].only_seen()


def test_splits_keep_the_unseen_out(train, val_unseen):
    unseen = np.array(VIEWS["os168"].unseen)
    val_seen = [scene("val_seen", i) for i in range(100)]
    for drawn in train + val_seen:
        assert not np.isin(drawn.classes, unseen).any()
    present = [np.isin(np.unique(s.classes), unseen).any() for s in val_unseen]
    assert np.mean(present) > 0.9
    occurring = np.unique(np.stack([s.classes for s in val_unseen]))
    assert len(occurring) == 168
    kinds = [np.unique(s.classes) for s in val_unseen]
    things = np.concatenate([k[k < 144] for k in kinds])
    stuff = np.concatenate([k[k >= 144] for k in kinds])
    assert abs(np.isin(things, unseen).mean() - 0.5) < 0.05
    assert abs(np.isin(stuff, unseen).mean() - 0.3) < 0.06


def test_connected_parts_against_scipy():
    generator = np.random.default_rng(0)
    spiral = np.zeros((41, 41), int)
    for ring in range(0, 20, 2):  # a single path that winds inwards
        spiral[ring, max(ring - 1, 0) : 41 - ring] = 1
        spiral[ring : 41 - ring, 40 - ring] = 1
        spiral[40 - ring, ring : 41 - ring] = 1
        spiral[ring + 2 : 41 - ring, ring] = 1
    noise = [generator.integers(0, n, (37, 53)) for n in (1, 2, 3, 7)]
    for key in (*noise, spiral, np.zeros((1, 1), int), np.arange(6)[None] // 2):
        ours = openshapes.connected_parts(key, min_pixels=1)
        expected, offset = np.zeros(key.shape, int), 0
        for value in np.unique(key):
            labels, count = ndimage.label(key == value)
            expected[labels > 0] = labels[labels > 0] + offset
            offset += count
        pairs = np.unique(np.stack([ours.ravel(), expected.ravel()]), axis=1)
        assert pairs.shape[1] == ours.max() == offset
        first = np.unique(ours, return_index=True)[1]
        assert (np.diff(first) > 0).all()


def test_parts_are_large_enough_and_nest(train):
    for drawn in train[:30]:
        sizes = np.bincount(drawn.parts.ravel())
        assert sizes[1:].min() >= 6
        assert sizes[0] < 0.05 * drawn.parts.size
        key = drawn.instances * 8 + drawn.codes
        for part in range(1, len(sizes)):
            assert len(np.unique(key[drawn.parts == part])) == 1


def test_point_targets(train):
    for i, drawn in enumerate(train[:20]):
        points, targets = openshapes.point_targets(drawn, 12, index=i)
        assert (points.shape, targets.shape) == ((12, 2), (12, 3, 96, 96))
        x, y = points.T
        assert targets[np.arange(12), :, y, x].all()
        whole, part, subpart = targets.swapaxes(0, 1)
        assert (part <= whole).all()
        assert (subpart <= part).all()
        assert subpart.sum((1, 2)).min() >= 6
        for k in range(12):
            np.testing.assert_array_equal(whole[k], drawn.instances == drawn.instances[y[k], x[k]])
            halves = np.unique(drawn.codes[part[k]] % TEXTURED)
            assert len(halves) == 1
            if halves[0] >= OUTLINE:  # an object: the textured half is more than its element
                same = drawn.codes % TEXTURED == halves[0]
                np.testing.assert_array_equal(part[k], whole[k] & same)
    again, _ = openshapes.point_targets(drawn, 12, index=i)
    np.testing.assert_array_equal(points, again)
    other, _ = openshapes.point_targets(drawn, 12, index=i, seed=1)
    assert not np.array_equal(points, other)


def test_points_visit_all_instances_alike(train):
    drawn = train[0]
    points, _ = openshapes.point_targets(drawn, 3000, index=0)
    share = np.bincount(drawn.instances[points[:, 1], points[:, 0]]) / 3000
    share = share[share > 0]
    assert len(share) == len(np.unique(drawn.instances))
    assert abs(share - 1 / len(share)).max() < 0.04


@pytest.fixture(scope="module")
def web():
    return openshapes.caption_batch(range(2000))


def test_caption_texts(web):
    (template,) = SegmenterConfig().templates
    assert len(web.captions) == 4000
    names = VIEWS["os168"].class_names
    for i in range(200):
        texture, color, shape = web.attributes[i, 0, 1:]
        full = names[(texture * 6 + color) * 6 + shape].split()
        kept = [w for w, n in zip(full[:2], web.named[i, 0, 1:3], strict=True) if n >= 0]
        kept.append(full[2] if web.named[i, 0, 3] >= 0 else "thing")
        assert web.captions[2 * i] == template.format(" ".join(kept))
        _, _, color, pattern = web.attributes[i, 1]
        ground = names[144 + pattern * 6 + color].split()
        ground = ground if web.named[i, 1, 2] >= 0 else ground[1:]
        assert web.captions[2 * i + 1] == template.format(" ".join(ground))


def test_caption_dropout(web):
    kept = (web.named >= 0).mean(0)
    np.testing.assert_allclose(kept[0], [1, 0.75, 0.85, 0.85], atol=0.03)
    np.testing.assert_allclose(kept[1], [1, 0, 0.85, 1], atol=0.03)
    together = (web.named[:, 0, 1:] >= 0).all(-1).mean()
    assert abs(together - 0.75 * 0.85 * 0.85) < 0.03


def test_caption_truth(web):
    truth = openshapes.captions_true_of(web.attributes[:64], web.named[:64].reshape(-1, 4))
    assert truth.shape == (64, 128)
    rows = np.arange(64)
    assert truth[rows, 2 * rows].all()
    assert truth[rows, 2 * rows + 1].all()
    assert 0.02 < truth.mean() < 0.3

    plain_red_circle, red_waves = [0, 0, 0, 0], [1, -1, 0, 0]
    captions = [
        [0, -1, -1, -1],  # thing
        [0, 0, 0, 0],
        [0, -1, 0, 1],  # red square
        [1, -1, 0, 0],
        [1, -1, -1, 0],  # waves
        [1, -1, 1, 0],  # green waves
    ]
    truth = openshapes.captions_true_of(
        np.array([[plain_red_circle, red_waves]]), np.array(captions)
    )
    assert truth.tolist() == [[True, True, False, True, True, False]]


def test_regimes(web):
    def pairs(attributes):
        return {(int(a[1]), int(a[2])) for a in attributes[:, 0]}

    def kinds(attributes):
        return {(int(a[3]), int(a[2])) for a in attributes[:, 1]}

    assert pairs(web.attributes) == {*SEEN_PAIRS, *UNSEEN_PAIRS}
    assert kinds(web.attributes) == {*SEEN_STUFF, *UNSEEN_STUFF}
    strict = openshapes.caption_batch(range(1000), regime="strict")
    assert pairs(strict.attributes) == set(SEEN_PAIRS)
    assert kinds(strict.attributes) == set(SEEN_STUFF)
    withheld = [OS48.class_names[i].replace(" thing", "") for i in OS48.unseen]
    assert not any(f" {name} " in text for name in withheld for text in strict.captions)
    assert any(f" {withheld[0]} " in text for text in web.captions)


def test_tokenizer(tmp_path):
    build_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = type(build_tokenizer()).from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.get_vocab()
    assert sorted(ids.values()) == list(range(len(ids)))
    assert ids["<|pad|>"] == 0
    assert ids["<|startoftext|>"] == len(ids) - 2
    assert ids["<|endoftext|>"] == len(ids) - 1
    for name in (*OS48.class_names, *VIEWS["os168"].class_names):
        text = openshapes.TEMPLATE.format(name)
        row = np.array(tokenizer.encode(text).ids)
        assert len(row) == openshapes.CONTEXT_LENGTH
        end = row.argmax()
        assert end == len(text.split()) + 1
        assert row[0] == ids["<|startoftext|>"]
        assert (row[1:end] > 0).all()
        assert (row[end + 1 :] == 0).all()
        assert tokenizer.decode(row[1:end]) == text.lower()
    long = tokenizer.encode("red " * 40).ids
    assert (len(long), long[-1]) == (openshapes.CONTEXT_LENGTH, ids["<|endoftext|>"])
    with pytest.raises(Exception, match="UNK"):
        tokenizer.encode("zebra")


def test_source():
    source = OpenShapes("val_unseen", "os168", seed=3)
    assert len(source) == 400
    example = source[np.int64(7)]
    drawn = scene("val_unseen", 7, seed=3)
    np.testing.assert_array_equal(example["image"], drawn.image)
    np.testing.assert_array_equal(example["label"], drawn.classes)
    assert example["label"].dtype == np.uint8
    names = {OpenShapes(s, num_examples=9)[i]["file_name"] for s in ("train", "val_seen")
             for i in range(9)}  # fmt: skip
    assert len(names) == 18
    assert OpenShapes("train", OS48.only_seen(), num_examples=5)[4]["label"].max() < 36
    for index in (-1, 400):
        with pytest.raises(IndexError):
            source[index]
    assert len(list(OpenShapes("train", num_examples=3))) == 3


def test_wave_is_periodic_and_bounded():
    t = np.arange(96)
    values = wave(t, 24, 4)
    assert (values.min(), values.max()) == (-4, 4)
    np.testing.assert_array_equal(values, wave(t + 24, 24, 4))
    np.testing.assert_array_equal(values, -wave(t + 12, 24, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scene("test", 0), "no split 'test'; there are train, val_seen, val_unseen"),
        (lambda: scene("train", -1), "index -1"),
        (lambda: scene("train", 0, seed=2**64), "seed 18446744073709551616"),
        (lambda: scene("train", 0, size=300), "size 300"),
        (lambda: OpenShapes("test"), "no split 'test'"),
        (lambda: OpenShapes("train", "os9"), "no view 'os9'; there are os48, os168, os-b"),
        (lambda: openshapes.caption_example(0, regime="free"), "no regime 'free'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(SammiError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
