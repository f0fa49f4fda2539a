"""Preparing: what is written, resuming to the same bytes, and errors."""

import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image

from sammi_jax.data.catalogue import open_dataset
from sammi_jax.data.prepare import sentinel
from sammi_jax.data.prepare import write as prepare_module
from sammi_jax.data.prepare.descriptions import split_lengths
from sammi_jax.data.prepare.doctor import examine
from sammi_jax.data.prepare.known_sets import LAYOUTS, get_layout
from sammi_jax.data.prepare.record_offsets import OFFSETS_FILE, read_offsets
from sammi_jax.data.prepare.write import prepare, prepared_folder
from sammi_jax.errors import SammiError

ROOT = Path(__file__).resolve().parent.parent


def save_image(path, height=6, width=8, seed=0, label=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if label is None:
        rng = np.random.default_rng(seed)
        label = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(np.asarray(label, np.uint8)).save(path)


def ade(folder, count, split="validation"):
    for index in range(count):
        name = f"ADE_val_{index:08}"
        save_image(folder / "images" / split / f"{name}.jpg", seed=index)
        values = np.full((6, 8), index % 150 + 1)
        values[0, 0] = 0
        save_image(folder / "annotations" / split / f"{name}.png", label=values)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def prepare_ade(source, data_dir):
    return prepare("ade20k_150", source, data_dir, splits=["validation"], allow_incomplete=True)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare_module, "_PAIRS_PER_SHARD", 4)


def test_tfds_reads_it_without_tensorflow(tmp_path):
    folder = prepare_ade(ade(tmp_path / "in", 3), tmp_path / "out")
    assert folder == prepared_folder(tmp_path / "out", "ade20k_150")
    builder = tfds.builder_from_directory(folder)
    source = builder.as_data_source("validation")
    assert len(source) == 3
    assert source[2]["label"].shape == (6, 8, 1)
    assert source[2]["label"][1, 1, 0] == 2
    metadata = builder.info.metadata
    assert (metadata["ignore_index"], len(metadata["classes"])) == (255, 150)
    assert metadata["complete"] is False
    assert metadata["licence"]
    assert "tensorflow" not in sys.modules


def test_the_catalogue_opens_it(tmp_path):
    source = ade(tmp_path / "in", 3)
    prepare_ade(source, tmp_path / "out")
    dataset = open_dataset("ade20k_150", data_dir=tmp_path / "out")
    assert (dataset.column, dataset.num_classes, len(dataset.source)) == ("A-150", 150, 3)
    stored = pickle.loads(pickle.dumps(dataset.source))[1]
    file = source / "images" / "validation" / "ADE_val_00000001.jpg"
    np.testing.assert_array_equal(stored["image"], np.asarray(Image.open(file)))
    assert stored["file_name"] == "ADE_val_00000001.jpg"
    assert stored["label"][0, 0] == 255
    assert (stored["label"].ravel()[1:] == 1).all()
    assert len(open_dataset("ade20k_150/validation", 2, tmp_path / "out").source) == 2
    with pytest.raises(SammiError, match="cannot open split 'training'"):
        open_dataset("ade20k_150/training", data_dir=tmp_path / "out")


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize(
    "feature",
    [
        {"pythonClassName": "canary_module.Feature", "text": {}},
        {"python_class_name": "canary_module.Feature", "text": {}},
        {"type": "canary_module.Feature", "content": {}},
        {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "jsonFeature": {"json": '{"a": {"type": "canary_module.Feature", "content": {}}}'},
        },
    ],
)
def test_a_description_runs_no_module(file, feature, tmp_path, monkeypatch):
    """TFDS imports the module of a feature that it does not know."""
    folder = prepare_ade(ade(tmp_path / "in", 1), tmp_path / "out")
    (tmp_path / "canary_module.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    content = json.loads((folder / file).read_text())
    if file == "features.json":
        content = feature
    else:
        content["features"] = feature
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(SammiError, match=f"{file}: .*no feature of a prepared set"):
        open_dataset("ade20k_150", data_dir=tmp_path / "out")
    assert not (tmp_path / "canary").exists()


def test_descriptions_that_differ_are_refused(tmp_path):
    """TFDS would read the first examples only, and score them as the whole set."""
    folder = prepare_ade(ade(tmp_path / "in", 3), tmp_path / "out")
    file = folder / "dataset_info.json"
    content = json.loads(file.read_text())
    content["splits"][0]["shardLengths"] = ["2"]
    file.write_text(json.dumps(content))
    with pytest.raises(SammiError, match=r"names 2 examples of validation, .*\.json 3"):
        open_dataset("ade20k_150", data_dir=tmp_path / "out")
    file.write_text(json.dumps(content | {"splits": []}))
    with pytest.raises(SammiError, match="names no split"):
        split_lengths(folder)


@pytest.mark.parametrize(
    "shard",
    [
        None,
        [],
        {"bytes": 9, "offsets": None},
        {"bytes": 9, "offsets": []},
        {"bytes": "9", "offsets": [1, 2]},
        {"bytes": 9, "offsets": [1, True]},
        {"bytes": 9, "offsets": [2, 1]},
        {"bytes": 9, "offsets": [-1, 2]},
        {"bytes": 9, "offsets": [1, 10]},
    ],
)
def test_offsets_of_another_form(tmp_path, shard):
    (tmp_path / OFFSETS_FILE).write_text(json.dumps({"a-val": shard, "b-val": {}}))
    with pytest.raises(SammiError, match=f"{OFFSETS_FILE}: damaged; prepare the set again"):
        read_offsets(tmp_path, "a-")


def test_images_keep_their_bytes(tmp_path):
    source = ade(tmp_path / "in", 1)
    folder = prepare_ade(source, tmp_path / "out")
    file = source / "images" / "validation" / "ADE_val_00000000.jpg"
    builder = tfds.builder_from_directory(folder)
    decoders = {"image": tfds.decode.SkipDecoding()}
    (stored,) = builder.as_data_source("validation", decoders=decoders)
    assert stored["image"] == file.read_bytes()


def test_two_preparations_are_equal(tmp_path, small_shards):
    source = ade(tmp_path / "in", 10)
    one, two = (contents(prepare_ade(source, tmp_path / name)) for name in "ab")
    assert one == two
    assert sum(".array_record-" in name for name in one) == 3


def test_an_interrupted_preparation_resumes(tmp_path, small_shards, monkeypatch):
    source = ade(tmp_path / "in", 10)
    whole = contents(prepare_ade(source, tmp_path / "whole"))
    make, calls = prepare_module.make_examples, []

    def fails_at(limit):
        def fail(pair, *rest):
            if len(calls) == limit:
                raise KeyboardInterrupt
            calls.append(pair.key)
            return make(pair, *rest)

        return fail

    monkeypatch.setattr(prepare_module, "make_examples", fails_at(6))
    with pytest.raises(KeyboardInterrupt):
        prepare_ade(source, tmp_path / "cut")
    with pytest.raises(SammiError, match="not prepared"):
        open_dataset("ade20k_150", data_dir=tmp_path / "cut")
    calls.clear()
    monkeypatch.setattr(prepare_module, "make_examples", fails_at(99))
    assert contents(prepare_ade(source, tmp_path / "cut")) == whole
    assert calls == [f"ADE_val_{index:08}" for index in range(4, 10)]  # the first shard was there
    assert [path.name for path in (tmp_path / "cut" / "ade20k_150").iterdir()] == ["1.0.0"]


KILLED = """
import os, signal, sys
from pathlib import Path
from sammi_jax.data.prepare import write as module
module._PAIRS_PER_SHARD = 4
make = module.make_examples
def make_until_killed(pair, *rest):
    if pair.key == "ADE_val_00000010":
        os.kill(os.getpid(), signal.SIGKILL)
    return make(pair, *rest)
module.make_examples = make_until_killed
module.prepare("ade20k_150", Path(sys.argv[1]), Path(sys.argv[2]), splits=["validation"],
               allow_incomplete=True)
"""


def test_a_killed_preparation_resumes(tmp_path, small_shards):
    """Killed in the middle of the third shard of five."""
    source = ade(tmp_path / "in", 20)
    whole = contents(prepare_ade(source, tmp_path / "whole"))
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "cut")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    partial = tmp_path / "cut" / "ade20k_150" / "1.0.0.partial"
    finished = {path: path.stat().st_mtime_ns for path in partial.glob("ade*")}
    assert len(finished) == 2
    folder = prepare_ade(source, tmp_path / "cut")
    assert contents(folder) == whole
    assert {partial / p.name: p.stat().st_mtime_ns for p in folder.iterdir()}.items() >= (
        finished.items()
    )


def test_another_source_starts_again(tmp_path, small_shards, monkeypatch):
    source = ade(tmp_path / "in", 6)
    monkeypatch.setattr(
        prepare_module, "_finish", lambda *_: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        prepare_ade(source, tmp_path / "out")
    monkeypatch.undo()
    ade(tmp_path / "in", 7)
    with pytest.warns(UserWarning, match="the source has changed"):
        prepare_ade(source, tmp_path / "out")
    assert len(open_dataset("ade20k_150", data_dir=tmp_path / "out").source) == 7


# --- errors ---


def test_missing_files_of_a_source_are_named(tmp_path):
    source = ade(tmp_path / "in", 5)
    (source / "annotations" / "validation" / "ADE_val_00000003.png").unlink()
    (source / "images" / "validation" / "ADE_val_00000001.jpg").unlink()
    with pytest.raises(SammiError) as error:
        prepare("ade20k_150", source, tmp_path / "out", splits=["validation"])
    assert "ade20k_150/validation is not complete" in str(error.value)
    assert "ADE_val_00000001 has no image, ADE_val_00000003 has no label" in str(error.value)
    assert "3 labeled images, not 2,000" in str(error.value)
    assert not (tmp_path / "out").exists()
    prepare_ade(source, tmp_path / "out")
    assert len(open_dataset("ade20k_150", data_dir=tmp_path / "out").source) == 3


def test_a_missing_split_raises_an_error(tmp_path):
    source = ade(tmp_path / "in", 2)
    with pytest.raises(SammiError, match=r"has no file images/training/\{id\}\.jpg"):
        prepare("ade20k_150", source, tmp_path / "out", allow_incomplete=True)
    with pytest.raises(SammiError, match="no such folder; --source"):
        prepare("ade20k_150", tmp_path / "none", tmp_path / "out")
    with pytest.raises(SammiError, match="ade: no such data set"):
        prepare("ade", source, tmp_path / "out")


def test_a_complete_source_needs_no_flag(tmp_path):
    for index in range(20 + 8):
        save_image(tmp_path / "in" / "CHASEDB1" / f"Image_{index:02}.jpg", seed=index)
        mask = Image.fromarray(np.eye(6, 8) > 0)
        mask.save(tmp_path / "in" / "CHASEDB1" / f"Image_{index:02}_1stHO.png")
    prepare("mess_chase_db1", tmp_path / "in", tmp_path / "out")
    dataset = open_dataset("mess_chase_db1", data_dir=tmp_path / "out")
    assert dataset.source[0]["file_name"] == "Image_08.jpg"
    assert dataset.source[0]["label"].tolist() == np.eye(6, 8).tolist()


def test_damaged_files_and_wrong_values_are_named(tmp_path):
    source = ade(tmp_path / "in", 2)
    file = source / "images" / "validation" / "ADE_val_00000001.jpg"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(SammiError, match=r"ADE_val_00000001\.jpg: cannot be decoded"):
        prepare_ade(source, tmp_path / "a")
    source = ade(tmp_path / "two", 2)
    label = source / "annotations" / "validation" / "ADE_val_00000000.png"
    save_image(label, label=np.full((6, 8), 200))
    with pytest.raises(SammiError, match=r"ADE_val_00000000\.png: values .* not know: 200 \(48"):
        prepare_ade(source, tmp_path / "b")


def test_a_prepared_set_is_not_overwritten(tmp_path):
    source = ade(tmp_path / "in", 1)
    prepare_ade(source, tmp_path / "out")
    with pytest.raises(SammiError, match="prepared already; remove it"):
        prepare_ade(source, tmp_path / "out")


# --- what single sets need ---


def voc(folder, labels):
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(labels) + "\n")
    for name, label in labels.items():
        save_image(folder / "JPEGImages" / f"{name}.jpg", 1, len(label))
        save_image(folder / "SegmentationClass" / f"{name}.png", label=[label])
    save_image(folder / "SegmentationClass" / "train_only.png", label=[[1]])
    return folder


def test_voc_drops_images_without_a_class(tmp_path):
    source = voc(tmp_path / "in" / "VOC2012", {"a": [0, 1, 255], "b": [0, 0, 255]})
    names = {}
    for name in ("pascal_voc_20", "pascal_voc_20b"):
        prepare(name, source.parent, tmp_path / "out", allow_incomplete=True)
        found = open_dataset(name, data_dir=tmp_path / "out").source
        names[name] = [
            (found[i]["file_name"], found[i]["label"].tolist()) for i in range(len(found))
        ]
    assert names["pascal_voc_20"] == [("a.jpg", [[255, 0, 255]])]
    assert names["pascal_voc_20b"] == [("a.jpg", [[20, 0, 255]]), ("b.jpg", [[20, 20, 255]])]


def test_other_sets_keep_images_without_a_class(tmp_path):
    source = ade(tmp_path / "in", 2)
    label = source / "annotations" / "validation" / "ADE_val_00000000.png"
    save_image(label, label=np.zeros((6, 8)))
    prepare_ade(source, tmp_path / "out")
    dataset = open_dataset("ade20k_150", data_dir=tmp_path / "out")
    assert len(dataset.source) == 2
    assert (dataset.source[0]["label"] == 255).all()


def test_a_damaged_list_of_images_is_named(tmp_path):
    folder = tmp_path / "VOC2010"
    save_image(folder / "JPEGImages" / "2008_1.jpg")
    (folder / "trainval_merged.json").write_text("{")
    with pytest.raises(SammiError, match="lists the images of the split is damaged"):
        prepare("pascal_context_59", folder, tmp_path / "out", allow_incomplete=True)


def test_tiles_are_cut_and_counted(tmp_path):
    image = np.full((1030, 2000, 3), 9, np.uint8)
    label = np.full((1030, 2000), 3)
    folder = tmp_path / "in" / "test"
    for part in ("test-org-img", "test-label-img"):
        (folder / part).mkdir(parents=True)
    Image.fromarray(image).save(folder / "test-org-img" / "7.jpg")
    save_image(folder / "test-label-img" / "7_lab.png", label=label)
    with pytest.raises(SammiError, match="4 labeled tiles, not 5,571"):
        prepare("mess_floodnet", tmp_path / "in", tmp_path / "out")
    prepare("mess_floodnet", tmp_path / "in", tmp_path / "out", allow_incomplete=True)
    dataset = open_dataset("mess_floodnet", data_dir=tmp_path / "out")
    assert len(dataset.source) == 4
    last = dataset.source[3]
    assert last["file_name"] == "7_3.png"
    assert last["image"].shape == (1024, 1024, 3)
    assert (last["label"][:6, : 2000 - 1024] == 3).all()
    assert (last["label"] == 255).sum() == 1024 * 1024 - 6 * (2000 - 1024)
    assert (last["image"][6:] == 0).all()
    report = examine(dataset.source, 10, 255)
    assert report.pixels.sum() == report.pixels[3] == label.size


def test_uavid_pairs_over_two_folders(tmp_path):
    for seq, color in (("seq16", (128, 0, 0)), ("seq17", (64, 64, 0))):
        folder = tmp_path / "uavid_val" / seq
        save_image(folder / "Images" / "000000.png")
        save_image(folder / "Labels" / "000000.png", label=np.broadcast_to(color, (6, 8, 3)))
    prepare("mess_uavid", tmp_path, tmp_path / "out", allow_incomplete=True)
    source = open_dataset("mess_uavid", data_dir=tmp_path / "out").source
    found = [(source[i]["file_name"], int(source[i]["label"][0, 0])) for i in range(2)]
    assert found == [("seq16_000000_0.png", 1), ("seq17_000000_0.png", 7)]


def test_worldfloods_names_the_missing_reader(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(SammiError, match="pip install tifffile"):
        sentinel.read_sentinel(tmp_path / "x.tif")


def test_worldfloods_bands(tmp_path, monkeypatch):
    bands = np.zeros((13, 2, 2), np.uint16)
    bands[7], bands[3], bands[1] = 6482, 3115, 60000

    class Reader:
        imread = staticmethod(lambda _: bands)

    monkeypatch.setitem(sys.modules, "tifffile", Reader)
    image = sentinel.read_sentinel(tmp_path / "x.tif")
    assert image.shape == (2, 2, 3)
    assert image[0, 0].tolist() == [254, 127, 255]


def test_persons_cut_short_are_completed(tmp_path):
    folder = tmp_path / "LV-MHP-v1"
    save_image(folder / "images" / "0001.jpg", 40, 40)
    data = (folder / "images" / "0001.jpg").read_bytes()
    (folder / "images" / "0001.jpg").write_bytes(data[:-30])
    (folder / "test_list.txt").write_text("0001.jpg\n")
    for number in (1, 2):
        save_image(
            folder / "annotations" / f"0001_02_0{number}.png", label=np.full((40, 40), number)
        )
    prepare("mess_mhp_v1", tmp_path, tmp_path / "out", allow_incomplete=True)
    example = open_dataset("mess_mhp_v1", data_dir=tmp_path / "out").source[0]
    assert example["image"].shape == (40, 40, 3)
    assert (example["label"] == 2).all()


def test_cub_reads_its_lists(tmp_path):
    folder = tmp_path / "CUB_200_2011"
    names = ["001.Albatross/A_1", "002.Bunting/B_1", "002.Bunting/B_2"]
    for name in names:
        save_image(folder / "images" / f"{name}.jpg")
        save_image(folder / "segmentations" / f"{name}.png", label=np.full((6, 8), 204))
    lines = [f"{i} {name}.jpg" for i, name in enumerate(names, 1)]
    (folder / "images.txt").write_text("\n".join(lines))
    (folder / "train_test_split.txt").write_text("1 0\n2 1\n3 0\n")
    prepare("mess_cub_200", tmp_path, tmp_path / "out", allow_incomplete=True)
    source = open_dataset("mess_cub_200", data_dir=tmp_path / "out").source
    found = [(source[i]["file_name"], int(source[i]["label"][0, 0])) for i in range(len(source))]
    assert found == [("001.Albatross_A_1.jpg", 1), ("002.Bunting_B_2.jpg", 2)]


def test_real_photographs(photographs, tmp_path):
    prepare_ade(photographs, tmp_path)
    prepare("mess_suim", photographs, tmp_path, allow_incomplete=True)
    for name, count in (("ade20k_150", 2), ("mess_suim", 2)):
        dataset = open_dataset(name, data_dir=tmp_path)
        assert examine(dataset.source, dataset.num_classes, dataset.ignore_label).sound
        assert len(dataset.source) == count


def lay(folder, template, split, key):
    """An empty file where a template says."""
    path = template.replace("{split}", split).replace("{id}", key).replace("{seq}", "seq16")
    file = folder / path.replace("*", "02_01")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


LISTED = {name for name, layout in LAYOUTS.items() if layout.splits[0].ids}


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - LISTED))
def test_every_layout_finds_its_files(tmp_path, name):
    layout = get_layout(name)
    for split in layout.splits:
        for number, image in enumerate(layout.image):
            for other, label in enumerate(layout.label):
                folder = tmp_path / f"{split.name}{number}{other}"
                files = [
                    (lay(folder, image, split.name, key), lay(folder, label, split.name, key))
                    for key in ("a_1", "b_2")
                ]
                pairs, lacking = layout.pairs(folder, split)
                assert [(pair.image, pair.labels[0]) for pair in pairs] == files
                files[0][1].unlink()
                pairs, lacking = layout.pairs(folder, split)
                assert len(pairs) == 1
                seq = "seq16/" if "{seq}" in image else ""
                assert lacking == [f"{seq}a_1 has no label"]


def test_layouts_with_a_list_of_images():
    expected = {name for name in LAYOUTS if name.startswith(("pascal_", "mess_paxray_"))}
    expected |= {"mess_mhp_v1", "mess_isprs_potsdam", "mess_kvasir_instrument", "mess_chase_db1"}
    assert expected | {"mess_cub_200", "mess_cwfid"} == LISTED
    potsdam, cwfid = get_layout("mess_isprs_potsdam"), get_layout("mess_cwfid")
    assert len(set(potsdam.splits[0].ids(ROOT))) == 14
    assert potsdam.splits[0].counts[0] == 14 * 6 * 6  # areas of 6000 x 6000
    assert len(set(cwfid.splits[0].ids(ROOT))) == cwfid.splits[0].counts[0]


def test_both_kinds_of_pascal_context(tmp_path):
    folder = tmp_path / "VOC2010"
    (folder / "trainval").mkdir(parents=True)
    save_image(folder / "JPEGImages" / "2008_1.jpg", 2, 3)
    save_image(folder / "JPEGImages" / "2008_2.jpg", 2, 3)
    values = np.array([[2, 9, 1], [2, 9, 1]], np.uint16)
    scipy.io.savemat(folder / "trainval" / "2008_1.mat", {"LabelMap": values})
    (folder / "pascalcontext_val.txt").write_text("2008_1\n")
    whole = {"size": [2, 3], "counts": [2, 2, 2]}
    size = {"height": 2, "width": 3}
    index = {
        "images": [
            {"image_id": 1, "file_name": "2008_1.jpg", "phase": "val", **size},
            {"image_id": 2, "file_name": "2008_2.jpg", "phase": "train", **size},
        ],
        "annos_segmentation": [{"image_id": 1, "category_id": 9, "segmentation": whole}],
    }
    (folder / "trainval_merged.json").write_text(json.dumps(index))
    labels = {}
    for name in ("pascal_context_59", "pascal_context_459"):
        prepare(name, tmp_path, tmp_path / "out", allow_incomplete=True)
        source = open_dataset(name, data_dir=tmp_path / "out").source
        labels[name] = [source[i]["label"].tolist() for i in range(len(source))]
    assert labels["pascal_context_59"] == [[[255, 1, 255]] * 2]
    assert labels["pascal_context_459"] == [[[1, 8, 0]] * 2]
