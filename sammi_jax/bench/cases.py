"""What is timed: for each name our form and PyTorch's, on equal weights and inputs.

A case is run in three processes that share files: one makes weights and inputs, one runs ours, one
runs the peer (`sammi_jax.bench.measure`). Modules of torch are imported where they are used, so
that our process holds none of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from sammi_jax.config.model import (
    SAM_SIZES,
    SEGMENTER_SIZES,
    MaskConfig,
    SamConfig,
    SegmenterConfig,
    SlidingConfig,
    view_layout,
)
from sammi_jax.ops.clip_image import CLIP_MEAN, CLIP_STD
from sammi_jax.typing import NpArray

Arrays = dict[str, NpArray]
Model = Literal["catseg", "sam", "sammi"]


@dataclass(frozen=True)
class Sizes:
    """Of the models and inputs of a benchmark.

    Attributes:
        catseg: CLIP and CAT-Seg.
        sam: Segment Anything.
        image: (height, width) of the image that is segmented.
        large: (height, width) that scores are resized to.
        grid: points along a side of SAM's everything-grid.
    """

    catseg: SegmenterConfig
    sam: SamConfig
    image: tuple[int, int]
    large: tuple[int, int]
    grid: int

    @property
    def sammi(self) -> SegmenterConfig:
        """CAT-Seg with SAM."""
        return replace(self.catseg, masks=MaskConfig(sam=self.sam))


def _tiny() -> SegmenterConfig:
    """The demo's CAT-Seg in the published form: windows, padding, no raw-cost skip."""
    demo = SEGMENTER_SIZES["openshapes"]
    aggregator = replace(demo.aggregator, cost_skip=False, pad_length=16, pooling_size=2)
    return replace(demo, aggregator=aggregator, sliding=SlidingConfig(160, 64))


# transformers' decoder norms have an eps of 1e-6 (`SamConfig.decoder_eps`).
SIZES = {
    "base": Sizes(
        SEGMENTER_SIZES["vitb16"],
        replace(SAM_SIZES["vitb"], decoder_eps=1e-6),
        image=(480, 640),
        large=(3000, 4000),
        grid=32,
    ),
    "tiny": Sizes(
        _tiny(),
        replace(SAM_SIZES["openshapes"], decoder_eps=1e-6),
        image=(60, 80),
        large=(150, 200),
        grid=4,
    ),
}


@dataclass(frozen=True)
class Ready:
    """One side with its weights and inputs in memory.

    Attributes:
        run: computes once, to the end; the arrays that both sides have are compared.
        flops: of the matrix products and convolutions of a run; None: not counted.
    """

    run: Callable[[], Arrays]
    flops: Callable[[], float] | None = None


@dataclass(frozen=True)
class Case:
    """A benchmark.

    Attributes:
        what: one line for the help.
        unit: what its number counts.
        counts: the numbers that are run by default.
        model: whose weights both sides get; None: none.
        inputs: makes the inputs.
        ours: our side.
        peer: PyTorch's.
        tolerance: largest relative L2 distance of the outputs; of integers the share that differs.
    """

    what: str
    unit: str
    counts: tuple[int, ...]
    model: Model | None
    inputs: Callable[[Sizes, int, np.random.Generator], Arrays]
    ours: Callable[[Sizes, Mapping[str, NpArray], Arrays], Ready]
    peer: Callable[[Sizes, Mapping[str, NpArray], Arrays], Ready]
    tolerance: float = 1e-4


# --- weights ---


def random_params(shapes: Mapping[str, Any], rng: np.random.Generator) -> Arrays:
    """Values with which signals neither vanish nor explode, for every parameter path."""
    params = {}
    for path, want in shapes.items():
        shape, noise = want.shape, rng.standard_normal(want.shape, np.float32)
        name = path.rpartition("/")[2]
        if path.endswith(("logit_scale", "log_scale")):
            value = np.full(shape, np.log(100.0), np.float32)
        elif name == "scale":
            value = 1 + 0.1 * noise
        elif name == "kernel":
            stacked = "/block/" in path
            fan_in = shape[0] if path.endswith("up/kernel") else np.prod(shape[stacked:-1])
            value = noise * np.float32(fan_in**-0.5)
        else:
            value = noise * np.float32(0.3 if "token" in name or "embed" in name else 0.1)
        if path.endswith("position/matrix"):
            value = noise
        params[path] = np.asarray(value, np.float32)
    return params


def config_of(model: Model, sizes: Sizes) -> SegmenterConfig | SamConfig:
    """The configuration of a case's model."""
    return {"catseg": sizes.catseg, "sam": sizes.sam, "sammi": sizes.sammi}[model]


def torch_tensors(params: Mapping[str, NpArray], config: SegmenterConfig | SamConfig) -> Arrays:
    """The same weights under the names of the torch modules."""
    from sammi_jax.convert.catseg_keys import AGGREGATOR_PREFIX, model_rules
    from sammi_jax.convert.clip_keys import KeyNames
    from sammi_jax.convert.rules import invert_rules
    from sammi_jax.convert.sam_keys import sam_rules

    if isinstance(config, SamConfig):
        return invert_rules(params, sam_rules(config, "huggingface"))
    tensors = invert_rules(params, model_rules(config, KeyNames("huggingface", "clip.")))
    tensors = {key.replace(AGGREGATOR_PREFIX, "aggregator."): v for key, v in tensors.items()}
    if config.masks is not None:
        start = "sam/"
        sam = {path.removeprefix(start): v for path, v in params.items() if path.startswith(start)}
        found = invert_rules(sam, sam_rules(config.masks.sam, "huggingface"))
        tensors |= {f"sam.{key}": value for key, value in found.items()}
    return tensors


def _module(config: Any, params: Mapping[str, NpArray]) -> Any:
    """Our module as a loaded model has it, its parameters on the device."""
    import jax

    from sammi_jax.inference.unrolled import unrolled_on_cpu
    from sammi_jax.weights.kinds import model_maker
    from sammi_jax.weights.params import build

    module = build(model_maker(config), jax.tree.map(jax.device_put, dict(params)))
    return unrolled_on_cpu(module)


def _jitted(module: Any, function: Callable[..., Any], *args: Any) -> Ready:
    """``function(module, *args) -> {name: array}`` as one compiled program."""
    import jax
    from flax import nnx

    from sammi_jax.training.flops import count_flops

    graphdef, state = nnx.split(module)
    program = jax.jit(lambda state, *args: function(nnx.merge(graphdef, state), *args))
    args = jax.tree.map(jax.device_put, args)

    def run() -> Arrays:
        return {name: np.asarray(x) for name, x in program(state, *args).items()}

    return Ready(run, lambda: count_flops(program, state, *args))


def _torch_module(module: Any, tensors: Mapping[str, NpArray], prefix: str = "") -> Any:
    """A torch module with the tensors under ``prefix``."""
    import torch

    state = {
        key.removeprefix(prefix): torch.from_numpy(np.array(value))
        for key, value in tensors.items()
        if key.startswith(prefix)
    }
    _, unexpected = module.load_state_dict(state, strict=False)
    if unexpected:
        raise ValueError(f"torch has no {unexpected[:4]}")
    return module


def _no_grad(function: Callable[[], dict[str, Any]]) -> Ready:
    """A torch function as a `Ready`."""
    import torch

    def run() -> Arrays:
        with torch.no_grad():
            return {name: x.detach().numpy() for name, x in function().items()}

    return Ready(run)


def _first(x: NpArray) -> Any:
    """Channels last to torch's channels first."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def _tensor(x: NpArray) -> Any:
    import torch

    return torch.from_numpy(np.array(x))


def _normal(rng: np.random.Generator, *shape: int) -> NpArray:
    return rng.standard_normal(shape, np.float32)


# --- CLIP ---


def _clip_images(sizes: Sizes, count: int, rng: np.random.Generator) -> Arrays:
    side = sizes.catseg.clip_size
    return {"images": _normal(rng, count, side, side, 3)}


def _dense_ours(sizes: Sizes, params: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    def dense(model: Any, images: Any) -> dict[str, Any]:
        low, taps = model.clip.encode_dense(images, sizes.catseg.taps)
        return {"low": low, "tap1": taps[0], "tap2": taps[1]}

    return _jitted(_module(sizes.catseg, params), dense, inputs["images"])


def _dense_peer(sizes: Sizes, tensors: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    from sammi_jax.bench.torch_towers import clip_dense, torch_clip

    clip = _torch_module(torch_clip(sizes.catseg.clip), tensors, "clip.")
    images = _first(inputs["images"])

    def dense() -> dict[str, Any]:
        low, taps = clip_dense(clip, images, sizes.catseg.taps)
        maps = {"low": low, "tap1": taps[0], "tap2": taps[1]}
        return {name: x.movedim(1, -1) for name, x in maps.items()}

    return _no_grad(dense)


def _prompt_ids(sizes: Sizes, count: int, rng: np.random.Generator) -> Arrays:
    """Prompts of 8 to 14 tokens, as those of ADE20K, in rows of the full length."""
    text = sizes.catseg.clip.text
    ids = np.zeros((count, text.context_length), np.int32)
    for row in ids:
        length = int(rng.integers(min(8, text.context_length), min(14, text.context_length) + 1))
        row[:length] = rng.integers(1, text.vocab_size - 2, length)
        row[0], row[length - 1] = text.vocab_size - 2, text.vocab_size - 1
    return {"token_ids": ids}


def _text_ours(sizes: Sizes, params: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    from sammi_jax.text.tokenizer import without_padding

    def text(model: Any, ids: Any) -> dict[str, Any]:
        return {"text": model.clip.encode_text(ids)}

    return _jitted(_module(sizes.catseg, params), text, without_padding(inputs["token_ids"]))


def _text_peer(sizes: Sizes, tensors: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    from sammi_jax.bench.torch_towers import clip_text, torch_clip

    clip = _torch_module(torch_clip(sizes.catseg.clip), tensors, "clip.")
    ids = _tensor(inputs["token_ids"])
    return _no_grad(lambda: {"text": clip_text(clip, ids)})


# --- SAM ---


def _sam_images(sizes: Sizes, count: int, rng: np.random.Generator) -> Arrays:
    return {"images": _normal(rng, count, sizes.sam.image_size, sizes.sam.image_size, 3)}


def _encoder_ours(sizes: Sizes, params: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    def encode(model: Any, images: Any) -> dict[str, Any]:
        return {"embeddings": model.encode_image(images)}

    return _jitted(_module(sizes.sam, params), encode, inputs["images"])


def _encoder_peer(sizes: Sizes, tensors: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    from sammi_jax.bench.torch_towers import torch_sam

    sam = _torch_module(torch_sam(sizes.sam), tensors)
    images = _first(inputs["images"])
    return _no_grad(lambda: {"embeddings": sam.get_image_embeddings(images).movedim(1, -1)})


def _points(sizes: Sizes, count: int, rng: np.random.Generator) -> Arrays:
    grid, side = sizes.sam.grid_size, sizes.sam.image_size
    return {
        "embeddings": _normal(rng, 1, grid, grid, sizes.sam.out_channels),
        "points": rng.uniform(0, side, (count, 2)).astype(np.float32),
    }


def _decoder_ours(sizes: Sizes, params: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    def decode(model: Any, embeddings: Any, points: Any) -> dict[str, Any]:
        labels = np.ones((1, len(points)), np.int32)
        masks, iou = model.decode(embeddings, points[None], labels)
        return {"masks": masks, "iou": iou}

    model = _module(sizes.sam, params)
    return _jitted(model, decode, inputs["embeddings"], inputs["points"])


def _decoder_peer(sizes: Sizes, tensors: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    from sammi_jax.bench.torch_towers import sam_decode, torch_sam

    sam = _torch_module(torch_sam(sizes.sam), tensors)
    embeddings, points = _first(inputs["embeddings"]), _tensor(inputs["points"])

    def decode() -> dict[str, Any]:
        masks, iou = sam_decode(sam, embeddings, points)
        return {"masks": masks, "iou": iou}

    return _no_grad(decode)


# --- masks: text-guided points and one decode, against the everything-grid ---

_CHECKED = 4  # points whose masks are compared: the two sides choose different ones
_GRID_CHUNK = 64  # points a batch of the grid, segment-anything's default


def _mask_inputs(sizes: Sizes, count: int, rng: np.random.Generator) -> Arrays:
    grid, width = sizes.catseg.aggregator.grid_size, sizes.catseg.clip.embed_dim
    return {
        **_points(sizes, _CHECKED, rng),
        "low": _normal(rng, 1, grid, grid, width),
        "text": _normal(rng, count, 1, width),
    }


def _masks_ours(sizes: Sizes, params: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    import jax.numpy as jnp

    from sammi_jax.models.proposals import choose_points
    from sammi_jax.models.tspp import class_distribution

    masks = sizes.sammi.masks
    assert masks is not None
    side = masks.sam.image_size

    def propose(model: Any, embeddings: Any, points: Any, low: Any, text: Any) -> dict[str, Any]:
        logits = model.tspp.class_logits(low, text)
        mask = jnp.ones(len(text), bool)
        chosen = choose_points(masks, class_distribution(logits, mask))
        where = chosen.cells / low.shape[1] * side - 0.5
        # The checked points are in the places of the last ones: the work stays the same.
        where = where.at[:, -_CHECKED:].set(points[None])
        labels = np.ones(where.shape[:2], np.int32)
        decoded, iou = model.sam.decode(embeddings, where, labels)
        return {
            "checked": decoded[:, -_CHECKED:],
            "checked_iou": iou[:, -_CHECKED:],
            "rest": decoded[:, :-_CHECKED],
        }

    order = ("embeddings", "points", "low", "text")
    return _jitted(_module(sizes.sammi, params), propose, *(inputs[name] for name in order))


def _masks_peer(sizes: Sizes, tensors: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    import torch

    from sammi_jax.bench.torch_towers import sam_decode, torch_sam

    sam = _torch_module(torch_sam(sizes.sam), tensors, "sam.")
    embeddings = _first(inputs["embeddings"])
    ticks = (torch.arange(sizes.grid) + 0.5) * (sizes.sam.image_size / sizes.grid)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    grid = torch.stack([x.ravel(), y.ravel()], dim=-1)
    grid[-_CHECKED:] = _tensor(inputs["points"])

    def everything() -> dict[str, Any]:
        masks = iou = torch.zeros(0)
        for points in grid.split(_GRID_CHUNK):
            masks, iou = sam_decode(sam, embeddings, points)
        return {"checked": masks[:, -_CHECKED:], "checked_iou": iou[:, -_CHECKED:]}

    return _no_grad(everything)


# --- CAT-Seg ---


def _features(sizes: Sizes, count: int, rng: np.random.Generator) -> Arrays:
    config = sizes.catseg
    grid, width = config.aggregator.grid_size, config.clip.embed_dim
    first, second = config.aggregator.decoder_guidance_dims
    return {
        "low": _normal(rng, 1, grid, grid, width),
        "high1": _normal(rng, 1, 2 * grid, 2 * grid, first),
        "high2": _normal(rng, 1, 4 * grid, 4 * grid, second),
        "text": _normal(rng, count, 1, width),
    }


_FEATURES = ("low", "high1", "high2", "text")


def _aggregation_ours(sizes: Sizes, params: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    import jax.numpy as jnp

    from sammi_jax.models.class_texts import ClassTexts
    from sammi_jax.models.cost_map import cost_map

    def aggregate(model: Any, low: Any, high1: Any, high2: Any, text: Any) -> dict[str, Any]:
        texts = ClassTexts(text, jnp.ones(len(text), bool))
        cost = cost_map(low, text)
        return {"logits": model.aggregator(cost, texts, low, (high1, high2), pooling_size=1)}

    model = _module(sizes.catseg, params)
    return _jitted(model, aggregate, *(inputs[name] for name in _FEATURES))


def _aggregation_peer(sizes: Sizes, tensors: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    from sammi_jax.bench.torch_catseg import TorchAggregator

    config = sizes.catseg
    module = TorchAggregator(config.aggregator, config.clip.embed_dim).eval()
    module = _torch_module(module, tensors, "aggregator.")
    low, high1, high2 = (_first(inputs[name]) for name in _FEATURES[:3])
    text = _tensor(inputs["text"])
    return _no_grad(lambda: {"logits": module(low, low, text, (high1, high2), pooling=1)})


def _photograph(sizes: Sizes, count: int, rng: np.random.Generator) -> Arrays:
    """Smooth colors with some noise, and unit-length text embeddings."""
    text = _normal(rng, count, 1, sizes.catseg.clip.embed_dim)
    coarse = rng.integers(0, 256, (6, 8, 3))
    height, width = sizes.image
    smooth = coarse.repeat(height // 6, axis=0).repeat(width // 8, axis=1)
    image = np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
    return {"image": image, "text": text / np.linalg.norm(text, axis=-1, keepdims=True)}


def _labels_ours(sizes: Sizes, params: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    from sammi_jax.inference.segmenter import Segmenter
    from sammi_jax.text.tokenizer import Tokenizer
    from sammi_jax.training.flops import count_flops

    def tokenizer() -> Tokenizer:
        raise AssertionError("the text embeddings are given")

    segmenter = Segmenter(sizes.catseg, params, tokenizer)
    names = [f"class {i}" for i in range(len(inputs["text"]))]
    views = partial(segmenter.views, layout=view_layout(sizes.catseg))
    prepared = segmenter.prepare(inputs["image"])
    text = segmenter.class_texts(inputs["text"], len(names))

    def run() -> Arrays:
        found = segmenter.segment(
            inputs["image"], names, text_embeddings=inputs["text"], keep_scores=False
        )
        return {"labels": found.labels}

    return Ready(run, lambda: count_flops(views, segmenter.state, prepared, text))


def _labels_peer(sizes: Sizes, tensors: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    import torch
    import torch.nn.functional as F  # noqa: N812

    from sammi_jax.bench.torch_catseg import TorchCatSeg
    from sammi_jax.images import resize_short_side

    config = sizes.catseg
    sliding = config.sliding
    assert sliding is not None
    model = _torch_module(TorchCatSeg(config).eval(), tensors)
    text = _tensor(inputs["text"])
    mean, std = (torch.from_numpy(x)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
    crop, out = config.crop_size, sliding.output_size
    starts = range(0, out - crop + 1, sliding.stride)

    def run() -> dict[str, Any]:
        image = _tensor(resize_short_side(inputs["image"])).permute(2, 0, 1)[None].float()
        resize = partial(F.interpolate, mode="bilinear", align_corners=False)
        canvas, whole = resize(image, (out, out)), resize(image, (crop, crop))
        views = [canvas[..., y : y + crop, x : x + crop] for y in starts for x in starts]
        views = resize((torch.cat([*views, whole]) - mean) / std, (config.clip_size,) * 2)
        scores = model.segment(views, text)
        return {"labels": resize(scores[None], inputs["image"].shape[:2])[0].argmax(dim=0)}

    return _no_grad(run)


def _scores(sizes: Sizes, count: int, rng: np.random.Generator) -> Arrays:
    sliding = sizes.catseg.sliding
    assert sliding is not None
    side = sliding.output_size
    return {"scores": rng.random((count, side, side), np.float32)}


def _resize_ours(sizes: Sizes, params: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    import jax
    import jax.numpy as jnp

    from sammi_jax.inference.readout import PixelTaps, best_class, interpolate, read_stripes
    from sammi_jax.inference.text_prompted import CLASS_BUCKET

    del params
    maps = jax.device_put(inputs["scores"])
    mask = jnp.ones(len(maps), bool)

    @jax.jit
    def best(maps: Any, taps: PixelTaps) -> tuple[Any, Any]:
        shape = taps.rows.shape[0], taps.columns.shape[0]

        some = lambda classes: maps[classes]  # noqa: E731
        return best_class(some, lambda x: interpolate(x, taps), mask, CLASS_BUCKET, shape)

    def read(taps: PixelTaps) -> tuple[NpArray, NpArray]:
        score, label = best(maps, taps)
        return np.asarray(score), np.asarray(label)

    def run() -> Arrays:
        score, label = read_stripes(read, (maps.shape[1], maps.shape[2]), sizes.large)
        return {"score": score, "label": label}

    return Ready(run)


def _resize_peer(sizes: Sizes, tensors: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    import torch.nn.functional as F  # noqa: N812

    del tensors
    maps = _tensor(inputs["scores"])[None]

    def run() -> dict[str, Any]:
        large = F.interpolate(maps, sizes.large, mode="bilinear", align_corners=False)[0]
        score, label = large.max(dim=0)
        return {"score": score, "label": label}

    return _no_grad(run)


# --- training ---

REMAT_FROM = 32  # classes from which on both sides recompute activations


def _training_batch(sizes: Sizes, count: int, rng: np.random.Generator) -> Arrays:
    side = sizes.catseg.crop_size
    labels = rng.integers(0, count, (1, 8, 8)).repeat(side // 8, axis=1).repeat(side // 8, axis=2)
    labels[:, : side // 8] = 255  # ignored
    return {
        **_prompt_ids(sizes, count, rng),
        "images": rng.uniform(0, 255, (1, side, side, 3)).astype(np.float32),
        "labels": labels.astype(np.int32),
    }


def _step_ours(sizes: Sizes, params: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    import jax

    from sammi_jax.config.experiment import SegmentConfig, TrainConfig
    from sammi_jax.parallel.batch import Batch
    from sammi_jax.text.tokenizer import without_padding
    from sammi_jax.training.flops import count_flops
    from sammi_jax.training.optim import make_optimizer
    from sammi_jax.training.state import TrainState, make_loss, make_train_step, trainable_paths
    from sammi_jax.training.tasks.segment import SegmentRules

    remat = "full" if len(inputs["token_ids"]) >= REMAT_FROM else "none"
    task = SegmentConfig(model=sizes.catseg, remat=remat)
    config = TrainConfig(task, steps=1000)
    rules = SegmentRules(task, 255, photographs=False)
    paths = trainable_paths(rules)
    chosen = {path: jax.device_put(params[path]) for path in paths}
    frozen = {p: jax.device_put(value) for p, value in params.items() if p not in chosen}
    optimizer = make_optimizer(config.optim, config.steps, {p: rules.lr_scale(p) for p in paths})
    step = make_train_step(make_loss(rules, "float32"), optimizer, config)
    program = jax.jit(step, donate_argnums=0)
    ids = without_padding(inputs["token_ids"])[:, None]
    batch = Batch({"images": inputs["images"], "labels": inputs["labels"]}, {"token_ids": ids})
    state = TrainState(jax.numpy.zeros((), "int32"), chosen, frozen, optimizer.init(chosen))
    flops = count_flops(step, state, batch)

    def run() -> Arrays:
        nonlocal state
        state, metrics = program(state, batch)
        head = state.trainable["aggregator/head/kernel"]
        found = {"loss": metrics["loss"], "norm": metrics["grad_norm"], "head": head}
        return {name: np.array(value) for name, value in found.items()}

    return Ready(run, lambda: flops)


def _step_peer(sizes: Sizes, tensors: Mapping[str, NpArray], inputs: Arrays) -> Ready:
    import torch

    from sammi_jax.bench.torch_catseg import TorchCatSeg
    from sammi_jax.bench.torch_training import Trainer

    model = _torch_module(TorchCatSeg(sizes.catseg), tensors)
    remat = len(inputs["token_ids"]) >= REMAT_FROM
    pixels = (_first(inputs["images"]) - torch.from_numpy(CLIP_MEAN)[:, None, None]) / (
        torch.from_numpy(CLIP_STD)[:, None, None]
    )
    trainer = Trainer(model, remat)
    ids, labels = _tensor(inputs["token_ids"]), _tensor(inputs["labels"]).long()

    def run() -> Arrays:
        loss, norm = trainer.step(pixels, ids, labels)
        head = model.aggregator.head.weight.detach().permute(2, 3, 1, 0).numpy()
        return {"loss": np.array(loss), "norm": np.array(norm), "head": head}

    return Ready(run)


CASES = {
    "clip_image": Case(
        "CLIP's dense image features, as CAT-Seg reads them",
        "images",
        (1, 4),
        "catseg",
        _clip_images,
        _dense_ours,
        _dense_peer,
    ),
    "clip_text": Case(
        "CLIP's text tower on prompts of 8 to 14 tokens, which we cut and the peer pads to 77",
        "prompts",
        (64,),
        "catseg",
        _prompt_ids,
        _text_ours,
        _text_peer,
    ),
    "sam_encoder": Case(
        "SAM's image encoder", "images", (1,), "sam", _sam_images, _encoder_ours, _encoder_peer
    ),
    "sam_decoder": Case(
        "SAM's mask decoder, three masks a point",
        "points",
        (64,),
        "sam",
        _points,
        _decoder_ours,
        _decoder_peer,
    ),
    "aggregation": Case(
        "CAT-Seg's cost aggregation and decoder, one view",
        "classes",
        (20, 150, 171, 847),
        "catseg",
        _features,
        _aggregation_ours,
        _aggregation_peer,
    ),
    "train_step": Case(
        f"a training step of CAT-Seg; from {REMAT_FROM} classes on both recompute activations",
        "classes",
        (20,),
        "catseg",
        _training_batch,
        _step_ours,
        _step_peer,
    ),
    "image_to_labels": Case(
        "CAT-Seg from an image to its label map, five views, text embeddings given",
        "classes",
        (20, 150),
        "catseg",
        _photograph,
        _labels_ours,
        _labels_peer,
        tolerance=1e-3,
    ),
    "resize": Case(
        "class scores to 12 megapixels and the best class of each, against interpolate and max",
        "classes",
        (20,),
        None,
        _scores,
        _resize_ours,
        _resize_peer,
    ),
    "masks": Case(
        "SAM's masks at 64 text-guided points, against those of the 32 x 32 everything-grid",
        "classes",
        (150,),
        "sammi",
        _mask_inputs,
        _masks_ours,
        _masks_peer,
    ),
}
