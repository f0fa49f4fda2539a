"""The catalogue: counts and hashes of every vocabulary, names, user folders, examination."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from sammi_jax.data.catalogue import dataset_names, open_dataset
from sammi_jax.data.input.augment import CheckLabel
from sammi_jax.data.input.pipeline import batch_stream, iterate
from sammi_jax.data.prepare.doctor import examine, random_miou
from sammi_jax.data.prepare.known_sets import LAYOUTS
from sammi_jax.data.prepare.report import report_lines
from sammi_jax.data.sources import Glance
from sammi_jax.data.vocabulary import get_vocabulary, tasks_of, vocabulary_names
from sammi_jax.errors import SammiError

COUNTS = {
    "coco_stuff_171": 171,
    "ade20k_150": 150,
    "ade20k_847": 847,
    "pascal_context_59": 59,
    "pascal_context_459": 459,
    "pascal_voc_20": 20,
    "pascal_voc_20b": 21,
    "mess_bdd100k": 19,
    "mess_dark_zurich": 20,
    "mess_mhp_v1": 19,
    "mess_foodseg": 104,
    "mess_atlantis": 56,
    "mess_dram": 12,
    "mess_isaid": 16,
    "mess_isprs_potsdam": 6,
    "mess_worldfloods": 3,
    "mess_floodnet": 10,
    "mess_uavid": 8,
    "mess_kvasir_instrument": 2,
    "mess_chase_db1": 2,
    "mess_cryonuseg": 2,
    "mess_paxray_lungs": 2,
    "mess_paxray_mediastinum": 2,
    "mess_paxray_bones": 2,
    "mess_paxray_diaphragm": 2,
    "mess_corrosion_cs": 4,
    "mess_deepcrack": 2,
    "mess_pst900": 5,
    "mess_zerowaste": 5,
    "mess_suim": 8,
    "mess_cub_200": 201,
    "mess_cwfid": 3,
}


def test_every_vocabulary_has_its_count():
    assert {name: get_vocabulary(name).num_classes for name in vocabulary_names()} == COUNTS
    assert set(LAYOUTS) == set(COUNTS)
    voc = get_vocabulary("pascal_voc_20b")
    assert (len(voc.texts), voc.background, voc.merge[19:22]) == (59, 20, (19, 20, 20))
    assert voc.class_titles[19:] == ("tvmonitor", "background")


@pytest.mark.parametrize("name", COUNTS)
def test_vocabularies_are_consistent(name):
    vocabulary = get_vocabulary(name)
    count = vocabulary.num_classes
    assert len(vocabulary.palette) == count
    assert set(vocabulary.merge) == set(range(count))
    targets = set(vocabulary.train_id_by_value.values()) | set(range(len(vocabulary.rgb_by_class)))
    assert set(range(count)) <= targets <= {*range(count), vocabulary.ignore_index}
    assert vocabulary.background is None or vocabulary.background < count
    assert set(vocabulary.classes_of_interest) <= set(range(count))
    assert (vocabulary.domain is not None) == name.startswith("mess_")
    assert vocabulary.home.startswith("http")
    assert vocabulary.licence


def test_vocabularies_equal_the_collected_facts(goldens):
    """Against the files that they were made from: names, palettes, ignored values, counts."""
    facts = json.loads((goldens / "vocabularies.json").read_text(encoding="utf-8"))
    random = facts["random_miou"]["values"]
    assert set(facts["vocabularies"]) == set(vocabulary_names())
    for name in vocabulary_names():
        fact = facts["vocabularies"][name]
        vocabulary = get_vocabulary(name)
        assert list(vocabulary.classes) == fact["classes"]
        assert vocabulary.texts == tuple(words[0] for words in fact["synonyms"])
        assert vocabulary.ignore_index == fact["ignore_index"]
        assert [list(color) for color in vocabulary.palette] == fact["palette"]
        assert [list(color) for color in vocabulary.rgb_by_class] in (
            [],
            list(fact.get("raw_rgb_by_class", {}).values()),
        )
        for value, train_id in fact.get("raw_value_to_train_id", {}).items():
            assert vocabulary.train_id_by_value[int(value)] == train_id
        assert LAYOUTS[name].splits[0].counts[0] == fact["num_eval"]
        if name.startswith("mess_"):
            assert vocabulary.random_miou in random.values()
    published = {
        get_vocabulary(n).column: get_vocabulary(n).random_miou for n in vocabulary_names()
    }
    del random["Mean"]
    assert sorted(v for v in published.values() if v is not None) == sorted(random.values())


def test_domains_hold_22_sets():
    mess = {get_vocabulary(n).column: get_vocabulary(n).domain for n in vocabulary_names()}
    domains = [domain for domain in mess.values() if domain]
    assert len(domains) == 22
    assert {domain: domains.count(domain) for domain in domains} == {
        "general": 6,
        "earth monitoring": 5,
        "medical": 4,
        "engineering": 4,
        "agriculture and biology": 3,
    }
    assert len(tasks_of("mess_paxray_bones")) == 4
    assert tasks_of("mess_suim") == ("mess_suim",)


def test_the_first_synonym_is_the_text():
    vocabulary = get_vocabulary("ade20k_847")
    assert vocabulary.classes[1] == "building, edifice"
    assert vocabulary.texts[1] == "building"
    assert get_vocabulary("ade20k_150").texts[7] == "bed "  # as CAT-Seg has it


def test_hashes_differ_between_vocabularies():
    hashes = {get_vocabulary(name).sha256 for name in vocabulary_names()}
    assert len(hashes) == len(COUNTS)


def test_open_shapes_still_open():
    dataset = open_dataset("os48/val_unseen", 3)
    assert (len(dataset.source), dataset.num_classes, len(dataset.unseen)) == (3, 48, 12)
    assert len(dataset.vocabulary_sha256) == 64
    assert "os48/val_unseen" in dataset_names()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ade20k_15O", "did you mean ade20k_150"),
        ("zzz", "no such data set; there are os48"),
        ("mess_suim", "sammi datasets prepare mess_suim --source DIR --data-dir"),
        (
            "ade20k_150/test",
            "no split 'test' in ADEChallengeData2016; there are: validation, training",
        ),
    ],
)
def test_names_that_do_not_open(tmp_path, name, message):
    with pytest.raises(SammiError, match=message):
        open_dataset(name, data_dir=tmp_path)


def test_a_path_is_told_from_a_name(tmp_path):
    with pytest.raises(
        SammiError, match=f"is a path; for a set of your own give folder:{tmp_path}"
    ):
        open_dataset(str(tmp_path))


def user_folder(tmp_path, labels, suffix=".png", classes="sky\nbuilding, edifice\n"):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir(parents=True, exist_ok=True)
    (tmp_path / "classes.txt").write_text(classes)
    for name, label in labels.items():
        label = np.array(label)
        pixels = np.zeros((*label.shape, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.jpg")
        dtype = np.uint8 if label.max() < 256 else np.uint16
        Image.fromarray(label.astype(dtype)).save(tmp_path / "labels" / f"{name}{suffix}")
    return tmp_path


def test_a_user_folder_opens(tmp_path):
    folder = user_folder(tmp_path, {"b": [[0, 1], [255, 1]], "a": [[1, 1]]})
    dataset = open_dataset(f"folder:{folder}")
    assert dataset.class_names == ("sky", "building")
    assert (dataset.num_classes, dataset.ignore_label) == (2, 255)
    source = pickle.loads(pickle.dumps(dataset.source))
    assert [source[i]["file_name"] for i in range(len(source))] == ["a.jpg", "b.jpg"]
    assert source[1]["label"].tolist() == [[0, 1], [255, 1]]
    assert (source[1]["image"].shape, source[1]["image"].dtype) == ((2, 2, 3), np.uint8)
    assert len(open_dataset(f"folder:{folder}", 1).source) == 1
    with pytest.raises(IndexError):
        source[2]
    with pytest.raises(SammiError, match=f"{folder}: num_examples=3, but it holds 2; give 1 to 2"):
        open_dataset(f"folder:{folder}", 3)


def test_a_user_folder_with_many_classes_has_wide_labels(tmp_path):
    names = "\n".join(f"class{i}" for i in range(300))
    folder = user_folder(tmp_path, {"a": [[255, 299, 65535]]}, classes=names)
    dataset = open_dataset(f"folder:{folder}")
    assert dataset.ignore_label == 65535
    assert dataset.source[0]["label"].tolist() == [[255, 299, 65535]]


def test_user_folders_that_lack_something(tmp_path):
    with pytest.raises(SammiError, match="has no folder images"):
        open_dataset(f"folder:{tmp_path}")
    folder = user_folder(tmp_path, {"a": [[0]], "b": [[0]]})
    (folder / "labels" / "a.png").unlink()
    (folder / "images" / "b.jpg").unlink()
    with pytest.raises(SammiError, match="a has no label, b has no image"):
        open_dataset(f"folder:{folder}")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 127, 254]], r"a\.jpg: label 127 is neither a class \(0 to 1\) nor the ignore label"),
        ([[1, 2, 1]], r"a\.jpg: label 2 is neither"),
        ([[0, 1]], r"a\.jpg: the image is \(1, 3\) and its label \(1, 2\)"),
        ([[0], [1], [0]], r"a\.jpg: the image is \(1, 3\) and its label \(3, 1\)"),
    ],
)
def test_training_checks_every_label(tmp_path, labels, message):
    folder = user_folder(tmp_path, {"a": labels})
    Image.new("RGB", (3, 1)).save(folder / "images" / "a.jpg")
    dataset = open_dataset(f"folder:{folder}")
    check = CheckLabel(dataset.name, dataset.num_classes, dataset.ignore_label)
    stream = batch_stream(dataset.source, [check], batch_size=1, seed=0)
    with pytest.raises(SammiError, match=f"{dataset.name}: {message}"):
        next(iterate(stream, 0, workers=0))
    good = user_folder(tmp_path / "good", {"a": [[0, 1, 255]]})
    stream = batch_stream(open_dataset(f"folder:{good}").source, [check], batch_size=1, seed=0)
    np.testing.assert_array_equal(next(iterate(stream, 0, workers=0))["label"], [[[0, 1, 255]]])


def test_an_upright_label_of_a_turned_image_is_refused(tmp_path):
    folder = user_folder(tmp_path, {"a": [[0, 1, 0]]})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (3, 1)).save(folder / "images" / "a.jpg", exif=exif)
    example = open_dataset(f"folder:{folder}").source[0]
    with pytest.raises(SammiError, match="an EXIF orientation turns the image, not the label"):
        CheckLabel("own", 2, 255).map(example)


def test_what_file_servers_leave_behind_is_no_example(tmp_path):
    folder = user_folder(tmp_path, {"a": [[0, 1]]})
    for litter in ("._a.jpg", ".ipynb_checkpoints/a.jpg", "@eaDir/a.jpg", "__MACOSX/a.jpg"):
        (folder / "images" / litter).parent.mkdir(exist_ok=True)
        (folder / "images" / litter).write_bytes(b"no image")
    assert len(open_dataset(f"folder:{folder}").source) == 1


def test_links_to_folders_are_followed(tmp_path):
    folder = user_folder(tmp_path / "set", {"a": [[0, 1]]})
    more = user_folder(tmp_path / "more", {"b": [[0, 1]], "c": [[1, 1]]})
    for part in ("images", "labels"):
        (folder / part / "more").symlink_to(more / part, target_is_directory=True)
        (folder / part / "loop").symlink_to(folder / part, target_is_directory=True)
    source = open_dataset(f"folder:{folder}").source
    assert sorted(source[index]["file_name"] for index in range(len(source))) == [
        "a.jpg", "more_b.jpg", "more_c.jpg",
    ]  # fmt: skip


def test_lossy_labels_are_refused(tmp_path):
    folder = user_folder(tmp_path, {"a": [[0, 1]]})
    Image.new("L", (2, 1)).save(folder / "labels" / "b.jpg")
    with pytest.raises(SammiError, match=r"labels: b\.jpg: JPEG and WebP change label values"):
        open_dataset(f"folder:{folder}")


def test_the_exif_orientation_is_applied(tmp_path):
    folder = user_folder(tmp_path, {"a": [[0, 1, 0]]})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1, 3)).save(folder / "images" / "a.jpg", exif=exif)
    source = open_dataset(f"folder:{folder}").source
    assert source[0]["image"].shape == (1, 3, 3)
    assert examine(source, 2, 255).sound


# --- examination ---


def test_examine_counts(tmp_path):
    labels = {"a": [[0, 0, 1, 255]], "b": [[2, 2, 2, 9]], "c": [[0, 0, 0, 0]]}
    folder = user_folder(tmp_path, labels, classes="sky\ntree\n")
    Image.new("RGB", (4, 2)).save(folder / "images" / "c.jpg")
    report = examine(open_dataset(f"folder:{folder}").source, 2, 255)
    assert report.pixels.tolist() == [6, 1]
    assert report.images_with.tolist() == [2, 1]
    assert report.ignored == 1
    assert report.outside == {2: 3, 9: 1}
    assert report.sizes_differ == ("c.jpg",)
    assert not report.sound
    text = "\n".join(report_lines(report, ("sky", "tree"), 12.0))
    assert "values that are no class: 2 (3 pixels), 9 (1 pixels)" in text
    assert "1 labels of another size than their image: c.jpg" in text
    assert "MESS publishes 12.00" in text


def test_examine_tells_negative_labels():
    class Labels:
        def __len__(self):
            return 1

        def glance(self, index):
            label = np.array([[0, -1, -1], [1, 1, 5]], np.int32)
            return Glance("a.png", (2, 3), label)

    report = examine(Labels(), 2, 255)
    assert report.outside == {-1: 2, 5: 1}
    assert report.pixels.tolist() == [1, 2]


def test_random_miou_is_what_random_guesses_score(rng):
    pixels = np.array([60_000, 30_000, 10_000, 0])
    label = np.repeat(np.arange(4), pixels)
    guess = rng.integers(0, 4, label.size)
    confusion = np.bincount(label * 4 + guess, minlength=16).reshape(4, 4)
    hits = np.diag(confusion)
    scores = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    assert random_miou(pixels) == pytest.approx(100 * scores.mean(), abs=0.2)
    assert random_miou(np.array([1, 1])) == pytest.approx(100 / 3)


def test_a_wrong_mapping_changes_the_random_score(tmp_path):
    """Two classes swapped keep it, two classes joined do not: it follows from the frequencies."""
    right = user_folder(tmp_path / "r", {"a": [[0] * 6 + [1] * 3 + [2]]}, classes="a\nb\nc\n")
    wrong = user_folder(tmp_path / "w", {"a": [[0] * 6 + [1] * 4]}, classes="a\nb\nc\n")
    scores = [
        examine(open_dataset(f"folder:{folder}").source, 3, 255).random_miou
        for folder in (right, wrong)
    ]
    lines = report_lines(
        examine(open_dataset(f"folder:{wrong}").source, 3, 255), ("a", "b", "c"), scores[0]
    )
    assert abs(scores[0] - scores[1]) > 1
    assert any("another number means other labels" in line for line in lines)
    assert any("1 of 3 classes never occur: c" in line for line in lines)
