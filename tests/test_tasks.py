"""The three tasks: their losses against loops, what trains, and that their batches fit."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sammi_jax.config.experiment import (
    CaptionConfig,
    DataConfig,
    MeshConfig,
    PromptConfig,
    SegmentConfig,
    TrainConfig,
)
from sammi_jax.config.model import CLIP_SIZES, SAM_SIZES, SEGMENTER_SIZES, MaskConfig
from sammi_jax.data import openshapes
from sammi_jax.errors import SammiError
from sammi_jax.layers.init import Keys
from sammi_jax.ops.class_sampling import OTHER_CLASS, relabel, sample_classes
from sammi_jax.parallel.batch import Batch
from sammi_jax.parallel.mesh import batch_sharding, make_mesh
from sammi_jax.training.state import trainable_paths
from sammi_jax.training.tasks import make_task
from sammi_jax.training.tasks.caption import contrastive_loss, pooled_scores
from sammi_jax.training.tasks.prompt import dice_loss, focal_loss, mask_iou
from sammi_jax.weights.params import build

CATSEG = SEGMENTER_SIZES["openshapes"]
SAMMI = replace(CATSEG, masks=MaskConfig(sam=SAM_SIZES["openshapes"]))
TASKS = {
    "caption": CaptionConfig(model=CLIP_SIZES["openshapes"]),
    "prompt": PromptConfig(model=SAM_SIZES["openshapes"]),
    "catseg": SegmentConfig(model=CATSEG, num_classes=7),
    "sammi": SegmentConfig(model=SAMMI, num_classes=7),
}


def make(name, **changes):
    return make_task(TrainConfig(task=TASKS[name], batch_size=2, **changes))


@pytest.mark.parametrize("name", TASKS)
def test_batch_fits_the_loss(name):
    """Shapes only: nothing is compiled."""
    task = make(name)
    params = task.initial_params(0)

    def loss(params, batch, key):
        return task.loss(build(lambda: task.make(Keys(0)), params), batch, key)

    value, metrics = jax.eval_shape(loss, params, task.batch(0), jax.random.key(0))
    assert value.shape == ()
    assert all(metric.shape == () for metric in metrics.values())


@pytest.mark.parametrize("name", TASKS)
def test_batches_follow_from_seed_and_step(name):
    first, again = make(name).batch(3), make(name).batch(3)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for other in (make(name).batch(4), make(name, seed=1).batch(3)):
        assert not np.array_equal(first.examples["images"], other.examples["images"])


@pytest.mark.parametrize("name", TASKS)
def test_processes_share_a_batch(name, monkeypatch):
    """Whatever their number, and whether threads or worker processes make the examples."""
    whole = make(name).batch(3)
    shares = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        shares.append(make(name, data=DataConfig(workers=process)).batch(3))
    for key, value in whole.examples.items():
        together = np.concatenate([share.examples[key] for share in shares])
        np.testing.assert_array_equal(together, value, err_msg=key)


def test_a_caption_is_true_of_every_image_that_has_its_attributes():
    """The pairs that the loss leaves out of the negatives, against loops over the batch."""
    batch = make_task(TrainConfig(task=TASKS["caption"], batch_size=16)).batch(0)
    attributes, named = batch.examples["attributes"], batch.examples["named"]
    flat = named.reshape(-1, 4)
    found = np.asarray(openshapes.captions_true_of(jnp.asarray(attributes), jnp.asarray(flat)))
    for image, text in np.ndindex(16, 32):
        fits = [
            all(n in (-1, a) for n, a in zip(flat[text], region, strict=True))
            for region in attributes[image]
        ]
        assert found[image, text] == any(fits)
    own = np.repeat(np.eye(16, dtype=bool), 2, axis=1)
    assert found[own].all()
    assert found[~own].any()


def test_contrastive_loss_against_loops(rng):
    scores = rng.normal(size=(3, 6))
    own = np.repeat(np.eye(3, dtype=bool), 2, axis=1)
    true = own | (rng.random((3, 6)) < 0.3)
    total = 0.0
    for i, t in zip(*np.nonzero(own), strict=True):
        texts = sum(np.exp(scores[i, j]) for j in range(6) if not true[i, j])
        images = sum(np.exp(scores[j, t]) for j in range(3) if not true[j, t])
        hit = np.exp(scores[i, t])
        total -= np.log(hit / (hit + texts)) + np.log(hit / (hit + images))
    expected = total / own.sum() / 2
    loss = contrastive_loss(jnp.asarray(scores), jnp.asarray(own), jnp.asarray(true))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_a_caption_true_of_all_has_no_gradient():
    """Such as "A photo of a thing": no negative is left, and nothing becomes NaN."""
    own = jnp.eye(2, dtype=bool)
    true = own.at[:, 0].set(True)
    value, grad = jax.value_and_grad(contrastive_loss)(jnp.ones((2, 2)), own, true)
    assert jnp.isfinite(value)
    assert jnp.isfinite(grad).all()
    assert float(jnp.abs(grad[0, 0])) > 0  # against text 1, of which image 0 is a negative


def test_pooled_scores_are_a_soft_maximum(rng):
    dense, texts = rng.normal(size=(2, 5, 4)), rng.normal(size=(3, 4))
    cosine = np.einsum("bnd,td->bnt", dense, texts)
    sharp = pooled_scores(jnp.asarray(dense), jnp.asarray(texts), 500.0)
    np.testing.assert_allclose(sharp, cosine.max(axis=1), atol=5e-3)
    expected = np.log(np.exp(2.0 * cosine).mean(axis=1)) / 2.0
    soft = pooled_scores(jnp.asarray(dense), jnp.asarray(texts), 2.0)
    np.testing.assert_allclose(soft, expected, rtol=1e-5)


def test_mask_losses_against_numpy(rng):
    logits, target = rng.normal(size=(2, 4, 4)), (rng.random((2, 4, 4)) < 0.4) * 1.0
    p = 1 / (1 + np.exp(-logits))
    right = np.where(target == 1, p, 1 - p)
    focal = ((1 - right) ** 2 * -np.log(right)).mean(axis=(1, 2))
    np.testing.assert_allclose(focal_loss(jnp.asarray(logits), jnp.asarray(target)), focal, 1e-5)
    dice = 1 - (2 * (p * target).sum((1, 2)) + 1) / (p.sum((1, 2)) + target.sum((1, 2)) + 1)
    np.testing.assert_allclose(dice_loss(jnp.asarray(logits), jnp.asarray(target)), dice, 1e-5)
    found, wanted = logits > 0, target == 1
    iou = (found & wanted).sum((1, 2)) / (found | wanted).sum((1, 2))
    np.testing.assert_allclose(mask_iou(jnp.asarray(logits), jnp.asarray(target)), iou, 1e-6)


def test_what_trains():
    catseg, sammi = (trainable_paths(make(name)) for name in ("catseg", "sammi"))
    in_clip = [path for path in catseg if path.startswith("clip/")]
    assert sorted(in_clip) == [
        f"clip/{tower}/transformer/block/attention/{name}/kernel"
        for tower in ("text", "vision")
        for name in ("query", "value")
    ]
    assert set(catseg) < set(sammi)
    assert not [path for path in sammi if path.startswith("sam/")]
    new = {path.split("/")[0] for path in set(sammi) - set(catseg)}
    assert new == {"tspp", "dmi"}
    task = make("sammi")
    assert {task.lr_scale(path) for path in in_clip} == {0.01}
    assert {task.lr_scale(path) for path in sammi if path.startswith("dmi/")} == {10.0}
    assert {task.lr_scale(path) for path in sammi if not path.startswith(("clip/", "dmi/"))} == {1}


def test_relabel():
    labels = jnp.array([[[0, 3], [255, 5], [7, 9]]])
    found = relabel(labels, jnp.array([3, 5]), 8, 255)
    assert found.tolist() == [[[OTHER_CLASS, 0], [255, 1], [OTHER_CLASS, OTHER_CLASS]]]


def test_classes_of_a_step_are_the_present_ones_and_others():
    labels = jnp.array([[[4, 4], [255, 11]], [[2, 4], [11, 11]]])
    sample = jax.jit(sample_classes, static_argnums=(2, 3))
    chosen = [sample(jax.random.key(i), labels, 12, 5).tolist() for i in range(60)]
    assert all(choice == sorted(set(choice)) and len(choice) == 5 for choice in chosen)
    assert all({2, 4, 11} <= set(choice) for choice in chosen)
    assert {i for choice in chosen for i in choice} == set(range(12))
    few = [sample(jax.random.key(i), labels, 12, 2).tolist() for i in range(60)]
    assert {tuple(choice) for choice in few} == {(2, 4), (2, 11), (4, 11)}


def test_devices_that_share_the_labels_choose_the_same_classes(rng):
    """A class that one device's labels hold counts for all."""
    labels = rng.integers(0, 3, (8, 4, 4)).astype("i")
    labels[5, 2, 2] = 11
    sample = jax.jit(sample_classes, static_argnums=(2, 3))
    mesh = make_mesh(MeshConfig(fsdp=4))
    shared = jax.device_put(labels, batch_sharding(mesh))
    found = sample(jax.random.key(0), shared, 40, 4).tolist()
    assert found == sample(jax.random.key(0), jnp.asarray(labels), 40, 4).tolist() == [0, 1, 2, 11]


def test_a_step_without_classes_raises_an_error():
    with pytest.raises(SammiError, match="num_classes=0: give at least 1"):
        make_task(TrainConfig(task=SegmentConfig(model=CATSEG, num_classes=0)))


def test_all_classes_of_a_batch():
    batch = make("catseg").batch(0)
    assert batch.shared["token_ids"].shape[0] == len(openshapes.get_view("os48").seen)
    assert (batch.examples["labels"] >= 0).all()  # scenes of seen classes only


def test_a_sampled_step_asks_for_its_classes_only():
    """The loss with sampled classes is that of a batch whose shared tokens are these classes'."""
    task, everything = make("catseg"), make_task(TrainConfig(task=SegmentConfig(model=CATSEG)))
    params, batch, key = task.initial_params(0), task.batch(0), jax.random.key(5)
    make_model = lambda: task.make(Keys(0))  # noqa: E731
    losses = [
        jax.jit(lambda batch, rules=rules: rules.loss(build(make_model, params), batch, key)[0])
        for rules in (task, everything)
    ]
    found = losses[0](batch)
    total = batch.shared["token_ids"].shape[0]
    labels = jnp.asarray(batch.examples["labels"])
    classes = sample_classes(jax.random.split(key, 3)[2], labels, total, 7)
    alone = Batch(
        {**batch.examples, "labels": relabel(labels, classes, total, openshapes.IGNORE_LABEL)},
        {"token_ids": batch.shared["token_ids"][classes]},
    )
    assert float(found) == pytest.approx(float(losses[1](alone)), rel=1e-6)


def test_a_model_folder_that_does_not_fit_raises_an_error(tmp_path):
    clip = make("caption")
    clip.export(clip.initial_params(0), tmp_path / "clip", 0)
    wider = replace(CATSEG, clip=replace(CATSEG.clip, embed_dim=64))
    good = SegmentConfig(model=CATSEG, clip=str(tmp_path / "clip"))
    params = make_task(TrainConfig(task=good)).initial_params(1)
    expected = clip.initial_params(0)["text/token_embedding"]
    np.testing.assert_array_equal(params["clip/text/token_embedding"], expected)
    with pytest.raises(SammiError, match="does not fit the configured model"):
        make_task(TrainConfig(task=replace(good, model=wider))).initial_params(0)
    with pytest.raises(SammiError, match="holds a clip model, not sam"):
        make_task(TrainConfig(task=replace(good, sam=good.clip))).initial_params(0)


@pytest.mark.parametrize("weights", [(0.0, 0.0, 0.0), (2.0, -1.0, 1.0), (1.0, math.nan, 1.0)])
def test_weights_of_sams_outputs_that_mean_nothing(weights):
    with pytest.raises(SammiError, match="three numbers of 0 or more, not all 0"):
        PromptConfig(output_weights=weights)
