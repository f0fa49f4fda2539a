import numpy as np
import pytest
import sklearn.metrics

from sammi_jax.errors import SammiError
from sammi_jax.evaluation import confusion_matrix, scores
from sammi_jax.evaluation.metrics import boundary_iou, harmonic_mean, subset_miou


def loop_confusion(prediction, label, num_classes, ignore_label):
    table = [[0] * num_classes for _ in range(num_classes)]
    for p, t in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
        if t != ignore_label:
            table[t][p] += 1
    return table


def loop_scores(prediction, label, num_classes, ignore_label):
    """Sets of pixels, class by class: no matrix."""
    keep = [i for i, t in enumerate(label.ravel().tolist()) if t != ignore_label]
    predicted = [prediction.ravel().tolist()[i] for i in keep]
    labeled = [label.ravel().tolist()[i] for i in keep]
    iou, recall, weight, either = {}, {}, {}, set()
    for c in range(num_classes):
        a = {i for i, p in enumerate(predicted) if p == c}
        b = {i for i, t in enumerate(labeled) if t == c}
        if a or b:
            either.add(c)
        if b:
            iou[c] = len(a & b) / len(a | b)
            recall[c] = len(a & b) / len(b)
            weight[c] = len(b)
    right = sum(p == t for p, t in zip(predicted, labeled, strict=True))
    return {
        "iou": [iou.get(c, float("nan")) for c in range(num_classes)],
        "miou": sum(iou.values()) / len(iou),
        "miou_union": sum(iou.values()) / len(either),
        "fwiou": sum(iou[c] * weight[c] for c in iou) / sum(weight.values()),
        "macc": sum(recall.values()) / len(recall),
        "pacc": right / len(keep),
    }


@pytest.mark.parametrize(("num_classes", "ignore"), [(2, 255), (7, 255), (7, 0), (40, 40)])
def test_against_loops(rng, num_classes, ignore):
    label = rng.integers(0, num_classes, (3, 17, 11)).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = ignore
    label[label == 1] = 0  # a class that is only predicted
    prediction = rng.integers(0, max(2, num_classes - 2), label.shape).astype(np.int32)
    confusion = confusion_matrix(prediction, label, num_classes, ignore)
    assert confusion.dtype == np.int64
    assert confusion.tolist() == loop_confusion(prediction, label, num_classes, ignore)
    if confusion.sum():
        found, expected = scores(confusion), loop_scores(prediction, label, num_classes, ignore)
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize(("num_classes", "ignore"), [(2, 255), (30, 255), (300, 65535)])
def test_against_scikit_learn(rng, num_classes, ignore):
    """Equal in every integer, and so in every IoU: to the last bit."""
    label = rng.integers(0, num_classes, (2, 61, 47)).astype(np.uint16)
    label[label % 7 == 3] = 0  # classes that only the prediction has
    label[rng.random(label.shape) < 0.3] = ignore
    prediction = np.where(rng.random(label.shape) < 0.4, label, rng.permuted(label))
    prediction[(prediction == ignore) | (prediction % 5 == 4)] = 0  # and that only the label has
    prediction[rng.random(label.shape) < 0.01] = min(3, num_classes - 1)
    found = confusion_matrix(prediction, label, num_classes, ignore)

    classes, counted = list(range(num_classes)), label != ignore
    pair = (label[counted], prediction[counted])
    expected = sklearn.metrics.confusion_matrix(*pair, labels=classes)
    np.testing.assert_array_equal(found, expected)
    assert found.sum() == counted.sum() < label.size
    present = np.unique(pair[0])  # the others have no IoU
    iou = sklearn.metrics.jaccard_score(*pair, labels=present, average=None)
    result = scores(found)
    np.testing.assert_array_equal(np.asarray(result["iou"])[present], iou)
    assert np.isnan(np.delete(result["iou"], present)).all()
    assert result["miou"] == pytest.approx(iou.mean(), rel=1e-15)
    assert result["pacc"] == sklearn.metrics.accuracy_score(*pair)
    assert result["macc"] == pytest.approx(
        sklearn.metrics.recall_score(*pair, labels=present, average="macro"), rel=1e-15
    )
    assert num_classes == 2 or len(present) < num_classes


def test_ignored_predictions_are_free():
    label, prediction = np.array([0, 255, 255]), np.array([0, 900, -3])
    assert confusion_matrix(prediction, label, 1, 255).tolist() == [[1]]


def test_all_ignored_is_nan():
    result = scores(confusion_matrix(np.zeros(4, int), np.full(4, 255), 3, 255))
    assert all(np.isnan(result[name]).all() for name in result)


def test_two_conventions_differ():
    label, prediction = np.zeros(4, int), np.array([0, 0, 1, 2])
    result = scores(confusion_matrix(prediction, label, 3, 255))
    assert result["miou"] == pytest.approx(0.5)
    assert result["miou_union"] == pytest.approx(0.5 / 3)


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        ([0, 3, 4], [0, 1, 0], r"prediction 3 is neither in 0\.\.2 nor .* \(2 such pixels\)"),
        ([0, -1], [0, 1], "prediction -1"),
        ([0, 1], [0, 3], "label 3"),
        ([0, 1], [0, -1], "label -1"),
        ([0, 1], [0], "shape"),
        ([0.0, 1.0], [0, 1], "integers"),
    ],
)
def test_wrong_input_raises_an_error(prediction, label, message):
    with pytest.raises(SammiError, match=message) as error:
        confusion_matrix(np.array(prediction), np.array(label), 3, 255)
    assert "\n" not in str(error.value)


def test_narrow_types_do_not_overflow():
    """200 * 250 + 249 fits neither uint8 nor int16."""
    label, prediction = np.array([200], np.uint8), np.array([249], np.uint8)
    assert confusion_matrix(prediction, label, 250, 255)[200, 249] == 1


def test_subset_and_harmonic_mean():
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert subset_miou(confusion, (0, 2)) == pytest.approx(3 / 4)
    assert subset_miou(confusion, (0, 1)) == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert np.isnan(subset_miou(confusion, (2,)))
    assert harmonic_mean(0.5, 0.25) == pytest.approx(1 / 3)
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert harmonic_mean(0.5, 0.5) == 0.5


def test_subset_with_classes_that_are_only_predicted():
    """MESS: 1 is only predicted and counts, 2 is only in the label, 3 is in neither."""
    confusion = np.array([[3, 1, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]])
    assert subset_miou(confusion, (0, 1), union=True) == pytest.approx(3 / 6 / 2)
    assert subset_miou(confusion, (0, 2), union=True) == pytest.approx(3 / 6 / 2)
    assert subset_miou(confusion, (0, 3), union=True) == pytest.approx(3 / 6)
    assert np.isnan(subset_miou(confusion, (3,), union=True))


def test_a_class_of_one_pixel_counts():
    assert scores(np.array([[1, 0], [0, 5]]))["miou"] == 1.0
    assert scores(np.array([[0, 1], [0, 5]]))["miou"] == pytest.approx(5 / 6 / 2)


def test_boundaries_that_are_only_predicted_have_no_iou():
    iou = boundary_iou(np.array([[3, 0, 0, 0], [4, 0, 2, 1], [5, 6, 0, 1]]))
    np.testing.assert_allclose(iou, [3 / 6, np.nan, 0.0, 0.0])
