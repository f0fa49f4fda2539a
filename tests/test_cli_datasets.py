"""`sammi datasets`: list, show, prepare."""

import numpy as np
import pytest
from PIL import Image

from sammi_jax.cli.main import main
from sammi_jax.data.catalogue import open_dataset


def run(capsys, *arguments):
    code = main(["datasets", *map(str, arguments)])
    return code, *capsys.readouterr()


@pytest.fixture
def suim(tmp_path):
    """Two images in the layout of SUIM."""
    for part in ("images", "masks"):
        (tmp_path / "SUIM" / "TEST" / part).mkdir(parents=True)
    for name, color in (("a", (0, 0, 255)), ("b", (255, 255, 255))):
        folder = tmp_path / "SUIM" / "TEST"
        Image.new("RGB", (8, 6), (9, 9, 9)).save(folder / "images" / f"{name}.jpg")
        Image.new("RGB", (8, 6), color).save(folder / "masks" / f"{name}.bmp")
    return tmp_path


def test_list(capsys, tmp_path):
    code, out, _ = run(capsys, "list")
    lines = out.splitlines()
    assert code == 0
    assert len(lines) == 1 + 32
    (line,) = [line for line in lines if line.startswith("ade20k_847")]
    assert line.split()[:4] == ["ade20k_847", "847", "2,000", "-"]
    (tmp_path / "ade20k_847" / "1.0.0").mkdir(parents=True)
    _, out, _ = run(capsys, "list", "--data-dir", tmp_path)
    assert [line.split()[3] for line in out.splitlines()[1:]].count("yes") == 1


def test_show_says_where_to_get_it_and_what_is_expected(capsys, tmp_path):
    code, out, _ = run(capsys, "show", "mess_suim", "--data-dir", tmp_path)
    assert code == 0
    for words in (
        "https://irvlab.cs.umn.edu",
        "MIT (unclear",
        "SUIM/TEST/images/{id}.jpg",
        "SUIM/TEST/masks/{id}.bmp",
        "test: 110 images",
        "not prepared in",
    ):
        assert words in out


def test_prepare_and_show(capsys, suim):
    arguments = ("prepare", "mess_suim", "--source", suim, "--data-dir", suim / "out")
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "mess_suim/test is not complete: 2 labeled images, not 110" in err
    assert err.count("\n") == 1
    code, out, _ = run(capsys, *arguments, "--allow-incomplete")
    assert code == 0
    assert "prepared" in out
    assert "prepared from an incomplete source" in out
    assert "6 of 8 classes never occur" in out
    assert "MESS publishes 5.30" in out
    (row,) = [line for line in out.splitlines() if "sea-floor" in line and "%" in line]
    assert row.split()[-4:] == ["48", "50.00", "%", "1"]
    code, shown, _ = run(capsys, "show", "mess_suim", "--data-dir", suim / "out")
    assert code == 0
    assert shown.endswith(out[out.index("\n") + 1 :])


def test_show_a_user_folder_with_faults(capsys, tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.array([[0, 3]], np.uint8)).save(tmp_path / "labels" / "a.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    code, out, _ = run(capsys, "show", f"folder:{tmp_path}")
    assert code == 1
    assert "WRONG: 1 labels of another size than their image: a.png" in out
    assert "WRONG: values that are no class: 3 (1 pixels)" in out


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ("background\nbuilding\n", "WRONG: the labels hold class 0 and the ignored value alone"),
        ("building\n", "WRONG: with one class every prediction is right"),
    ],
)
def test_masks_of_0_and_255_are_wrong(capsys, tmp_path, classes, words):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).save(tmp_path / "labels" / "a.png")
    (tmp_path / "classes.txt").write_text(classes)
    code, out, _ = run(capsys, "show", f"folder:{tmp_path}")
    assert code == 1
    assert words in out


def test_the_tasks_of_paxray_are_averaged(capsys, tmp_path):
    source = tmp_path / "paxray_dataset"
    for part in ("images", "labels"):
        (source / part).mkdir(parents=True)
    Image.new("L", (4, 4)).save(source / "images" / "x.png")
    stack = np.zeros((166, 4, 4), bool)
    stack[0], stack[10, :2] = True, True
    np.save(source / "labels" / "x.npy", stack)
    (source / "paxray.json").write_text(
        '{"test": [{"image": "images/x.png", "target": "labels/x.npy"}]}'
    )
    for task in ("lungs", "mediastinum", "bones", "diaphragm"):
        name = f"mess_paxray_{task}"
        code, out, _ = run(
            capsys,
            "prepare",
            name,
            "--source",
            source,
            "--data-dir",
            tmp_path,
            "--allow-incomplete",
        )
        assert code == 0
    # one class only: half of 1 is guessed, 1/2 over two classes; half and half: 1/3
    mean = 100 * (0.25 + 1 / 3 + 0.25 + 0.25) / 4
    assert (
        f"PAXRay-4, mean of 4 tasks\n  random guess: mIoU {mean:.2f}, MESS publishes 31.53" in out
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "ade20k_15"), "did you mean ade20k_150"),
        (("show", "os48/val_unseen"), "OpenShapes needs no preparation"),
        (("prepare", "suim", "--source", ".", "--data-dir", "."), "suim: no such data set"),
    ],
)
def test_wrong_names(capsys, arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert message in err


def test_wrong_use(capsys):
    for arguments in (("datasets",), ("datasets", "prepare", "mess_suim", "--source", ".")):
        with pytest.raises(SystemExit) as stop:
            main([*arguments])
        assert stop.value.code == 2
    assert "--data-dir" in capsys.readouterr().err


# --- draw ---


def test_draw_writes_a_user_folder(capsys, tmp_path):
    code, out, _ = run(capsys, "draw", "os48/val_seen", "--count", 3, "--out", tmp_path / "drawn")
    assert code == 0
    assert "3 scenes, 48 classes" in out
    drawn, scenes = open_dataset(f"folder:{tmp_path / 'drawn'}"), open_dataset("os48/val_seen", 3)
    assert drawn.class_names == scenes.class_names
    assert drawn.ignore_label == scenes.ignore_label
    for index in range(3):
        for part in ("image", "label"):
            found = np.asarray(drawn.source[index][part])
            np.testing.assert_array_equal(found, scenes.source[index][part])


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("os48/val_seen", 0, "--count 0: give at least 1"),
        ("ade20k_150", 3, "only OpenShapes can be drawn"),
        ("os-b/val_seen", 3, "several texts share a class"),
    ],
)
def test_draw_refuses(capsys, tmp_path, name, count, message):
    code, _, err = run(capsys, "draw", name, "--count", count, "--out", tmp_path / "drawn")
    assert code == 1
    assert message in err
    assert not list(tmp_path.iterdir())


def test_draw_never_overwrites(capsys, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    code, _, err = run(capsys, "draw", "os48/val_seen", "--count", 1, "--out", tmp_path)
    assert code == 1
    assert "exists already" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
