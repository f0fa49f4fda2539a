import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from sammi_jax import layers
from sammi_jax.config.model import SAM_SIZES
from sammi_jax.errors import SammiError
from sammi_jax.layers import Buffer
from sammi_jax.layers.init import Keys
from sammi_jax.models.sam import image_encoder, relative_attention, window_attention
from sammi_jax.models.sam.sam import PROMPT_CHUNK, Sam
from sammi_jax.weights.params import abstract_params, build
from tests.parity import assert_parity
from tests.sam_reference import SIDE, SMALL, HfConfig, SamModel, convert, make_model, tensors_of

GRID = SIDE // 16


@pytest.fixture(scope="module")
def reference() -> SamModel:
    return make_model(HfConfig(**SMALL))


@pytest.fixture(scope="module")
def converted(reference):
    return convert(tensors_of(reference), reference.config.to_dict())


@pytest.fixture(scope="module")
def ours(converted) -> Sam:
    return converted[0]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, SIDE, SIDE, 3)).astype("f")


@pytest.fixture(scope="module")
def embeddings(reference, image) -> np.ndarray:
    with torch.no_grad():
        return last(reference.get_image_embeddings(first(image))).numpy()


def first(x) -> torch.Tensor:
    return torch.tensor(np.asarray(x)).movedim(-1, 1)


def last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1)


def make_prompts(rng, kinds: str, batch: int = 2, k: int = 3, side: int = SIDE) -> dict:
    """Random prompts; the points hold every label, padding too."""
    prompts = {}
    if "points" in kinds:
        prompts["points"] = rng.uniform(0, side, (batch, k, 3, 2)).astype("f")
        prompts["labels"] = np.broadcast_to([1, 0, -1], (batch, k, 3)).astype(np.int32)
    if "box" in kinds:
        prompts["boxes"] = np.sort(rng.uniform(0, side, (batch, k, 2, 2)), axis=2)
        prompts["boxes"] = prompts["boxes"].reshape(batch, k, 4).astype("f")
    if "mask" in kinds:
        prompts["masks"] = 4 * rng.normal(size=(batch, k, side // 4, side // 4)).astype("f")
    return prompts


@torch.no_grad()
def torch_decode(model: SamModel, embeddings, prompts: dict, multimask: bool):
    """transformers' decoding; it takes one mask prompt an image, so prompts go one by one."""
    names = {"points": "input_points", "labels": "input_labels", "boxes": "input_boxes"}
    k = next(iter(prompts.values())).shape[1]
    outs = []
    for i in range(k):
        one = {names[n]: torch.tensor(v[:, i : i + 1]) for n, v in prompts.items() if n in names}
        if "masks" in prompts:
            one["input_masks"] = torch.tensor(prompts["masks"][:, i : i + 1])
        outs.append(model(image_embeddings=first(embeddings), multimask_output=multimask, **one))
    masks = torch.cat([out.pred_masks for out in outs], dim=1)
    return masks.numpy(), torch.cat([out.iou_scores for out in outs], dim=1).numpy()


@partial(jax.jit, static_argnums=(0, 4))
def _encode_or_decode(graphdef, state, inputs, prompts, multimask):
    """Compiled once for all models and tests with the same structure and shapes."""
    model = nnx.merge(graphdef, state)
    if prompts is None:
        return model.encode_image(inputs)
    return model.decode_prompts(inputs, **prompts, multimask=multimask)


def encode(model: Sam, image):
    return _encode_or_decode(*nnx.split(model), jnp.asarray(image), None, None)


def decode(model: Sam, embeddings, prompts: dict, multimask: bool):
    prompts = {name: jnp.asarray(value) for name, value in prompts.items()}
    return _encode_or_decode(*nnx.split(model), jnp.asarray(embeddings), prompts, multimask)


# Image encoder


def test_patch_embed(reference, ours, image):
    with torch.no_grad():
        expected = reference.vision_encoder.patch_embed(first(image))
    assert_parity(
        ours.image_encoder.patch_embed(jnp.asarray(image)), expected, name="sam patch embed"
    )


@pytest.mark.parametrize(
    ("stack", "index", "layer"),
    [("windowed_blocks", 1, 1), ("windowed_blocks", 2, 3), ("global_blocks", 1, 5)],
)
def test_encoder_block(reference, ours, rng, stack, index, layer):
    tokens = rng.normal(size=(2, GRID, GRID, 48)).astype("f")
    with torch.no_grad():
        expected = reference.vision_encoder.layers[layer](torch.tensor(tokens))
    block = getattr(ours.image_encoder, stack).layer(index)
    assert_parity(block(jnp.asarray(tokens)), expected, name=f"sam block {layer} ({stack})")


def test_image_encoder(ours, image, embeddings):
    assert_parity(encode(ours, image), embeddings, name="sam image encoder")


def test_encoder_without_windowed_blocks(image):
    config = {**SMALL, "vision_config": {**SMALL["vision_config"]}}
    config["vision_config"] |= {"num_hidden_layers": 2, "global_attn_indexes": [0, 1]}
    model = make_model(HfConfig(**config))
    ours, _, source = convert(tensors_of(model), model.config.to_dict())
    assert source.config.num_stages == source.config.num_layers == 2
    with torch.no_grad():
        expected = last(model.get_image_embeddings(first(image)))
    assert_parity(encode(ours, image), expected, name="sam encoder, all global")


@pytest.mark.parametrize(
    ("attend", "block"),
    [
        ("_attend_by_rows", 4),
        ("_attend_by_rows", 15),
        ("_attend_by_heads", 28),
        ("_attend_placed", 28),
        ("_attend_placed", 56),
    ],
)
def test_forms_of_attention_are_equal(monkeypatch, rng, attend, block):
    """In blocks of some rows and whole, positions added or part of the products; gradients too."""
    q, k, v = (jnp.asarray(rng.normal(size=(2, 3, 8, 7, 5)), jnp.float32) for _ in range(3))
    rel_h, rel_w = (jnp.asarray(rng.normal(size=(n, n, 5)), jnp.float32) for n in (8, 7))

    def value_and_slope(f):
        def loss(q):
            out = f(q, k, v, rel_h, rel_w)
            return (out**2).sum(), out

        slope, out = jax.jit(jax.grad(loss, has_aux=True))(q)
        return out, slope

    whole = value_and_slope(relative_attention._attend_whole)
    monkeypatch.setattr(relative_attention, "QUERY_BLOCK", block)
    for name in (attend, "decomposed_attention"):
        form = value_and_slope(getattr(relative_attention, name))
        assert_parity(form[0], whole[0], name=f"sam {name} {block}")
        assert_parity(form[1], whole[1], name=f"sam {name} {block}, gradient")


def test_positions_in_products_are_not_rounded(rng):
    """In bfloat16 both forms err alike, though the positions are large beside the products."""
    q, k, v = (jnp.asarray(rng.normal(size=(1, 4, 8, 8, 16)), jnp.bfloat16) for _ in range(3))
    rel_h, rel_w = (jnp.asarray(3 * rng.normal(size=(8, 8, 16)), jnp.bfloat16) for _ in range(2))
    exact = relative_attention._attend_whole(*(x.astype("f") for x in (q, k, v, rel_h, rel_w)))

    def error(form):
        out = jax.jit(form)(q, k, v, rel_h, rel_w)
        return float(jnp.abs(out.astype(jnp.float32) - exact).mean())

    added = error(relative_attention._attend_whole)
    assert error(relative_attention._attend_placed) < 1.1 * added


def _windows_input(rng, dtype):
    maps = tuple(jnp.asarray(rng.normal(size=(2, 10, 7, 12)), dtype) for _ in range(3))
    bias = jnp.asarray(rng.normal(size=(3, 12)), dtype)
    rel_h, rel_w = (jnp.asarray(rng.normal(size=(4, 4, 6)), dtype) for _ in range(2))
    return maps, bias, rel_h, rel_w


def test_forms_of_window_attention_are_equal(rng):
    """Windows of 4 x 4 with two heads, on a map that leaves 2 rows and 3 columns; gradients too."""
    maps, *rest = _windows_input(rng, jnp.float32)

    def value_and_slope(form):
        def loss(maps):
            out = form(maps, *rest)
            return (out**2).sum(), out

        slope, out = jax.jit(jax.grad(loss, has_aux=True))(maps)
        return out, slope

    expected = value_and_slope(window_attention._attend_in_windows)
    rows = value_and_slope(window_attention._attend_in_rows)
    assert expected[0].shape == (2, 10, 7, 12)
    assert_parity(rows[0], expected[0], name="sam rows of windows")
    for ours, whole in zip(rows[1], expected[1], strict=True):
        assert_parity(ours, whole, name="sam rows of windows, gradient")


def test_rows_of_windows_in_bfloat16(rng):
    """Their positions are rounded as the original's are; the error stays that of the products."""
    values = _windows_input(rng, jnp.bfloat16)
    exact = window_attention._attend_in_windows(*jax.tree.map(lambda x: x.astype("f"), values))

    def error(form):
        return float(jnp.abs(jax.jit(form)(*values).astype(jnp.float32) - exact).mean())

    windows = error(window_attention._attend_in_windows)
    assert error(window_attention._attend_in_rows) < 1.5 * windows


def test_relative_positions_are_interpolated(reference, rng):
    table = rng.normal(size=(15, 6)).astype("f")
    get_rel_pos = reference.vision_encoder.layers[0].attn.get_rel_pos
    for size in (8, 5, 11):
        expected = get_rel_pos(size, size, torch.tensor(table))
        ours = relative_attention.relative_positions(jnp.asarray(table), size)
        assert_parity(ours, expected, rel_l2=1e-6, name=f"sam relative positions {size}")


# Prompt encoder and mask decoder


def test_image_pe(reference, ours):
    with torch.no_grad():
        expected = last(reference.get_image_wide_positional_embeddings())[0]
    assert_parity(ours.prompt_encoder.image_pe(), expected, name="sam image pe")


@pytest.mark.parametrize("kinds", ["points", "box", "points box"])
def test_sparse_prompts(reference, ours, rng, kinds):
    prompts = make_prompts(rng, kinds)
    given = {name: prompts.get(name) for name in ("points", "labels", "boxes")}
    theirs = {f"input_{n}": None if x is None else torch.tensor(x) for n, x in given.items()}
    with torch.no_grad():
        expected, _ = reference.prompt_encoder(**theirs, input_masks=None)
    # A padding point comes with points alone.
    assert expected.shape[2] == {"points": 4, "box": 2, "points box": 5}[kinds]
    sparse = ours.prompt_encoder.sparse(
        *(None if x is None else jnp.asarray(x) for x in given.values())
    )
    assert_parity(sparse, expected, name=f"sam prompt encoder, {kinds}")


def test_mask_prompt(reference, ours, rng):
    mask = make_prompts(rng, "mask", k=1)["masks"]
    with torch.no_grad():
        expected = last(reference.prompt_encoder.mask_embed(torch.tensor(mask)))
    dense = jax.vmap(ours.prompt_encoder.dense)(jnp.asarray(mask[:, 0]))
    assert_parity(dense, expected, name="sam prompt encoder, mask")


def test_two_way_transformer(reference, ours, rng):
    tokens, image, image_pe = (rng.normal(size=(n, 32)).astype("f") for n in (7, 64, 64))
    to_map = lambda x: torch.tensor(x).T.reshape(1, 32, 8, 8)  # noqa: E731
    with torch.no_grad():
        expected = reference.mask_decoder.transformer(
            torch.tensor(tokens)[None, None], to_map(image), to_map(image_pe), None
        )
    got = ours.mask_decoder.transformer(*map(jnp.asarray, (tokens, image, image_pe)))
    for name, a, b in zip(("tokens", "image"), got, expected, strict=True):
        assert_parity(a, b[0, 0], name=f"sam two-way transformer, {name}")


@pytest.mark.parametrize(
    ("kinds", "multimask"),
    [
        ("points", True),
        ("points", False),
        ("box", True),
        ("points box", True),
        ("mask", True),
        ("points box mask", False),
    ],
)
def test_decode_prompts(reference, ours, embeddings, rng, kinds, multimask):
    prompts = make_prompts(rng, kinds)
    if kinds == "mask":  # transformers decodes a mask alone for one prompt only
        prompts = {"masks": prompts["masks"][:, :1]}
    masks, iou = torch_decode(reference, embeddings, prompts, multimask)
    low_res, ours_iou = decode(ours, embeddings, prompts, multimask)
    assert low_res.shape == (2, masks.shape[1], 3 if multimask else 1, 4 * GRID, 4 * GRID)
    name = f"sam decoder, {kinds}, {'multimask' if multimask else 'single'}"
    assert_parity(low_res, masks, name=name)
    assert_parity(ours_iou, iou, name=f"{name}, iou")


def test_decode_is_one_prompt_a_point(reference, ours, embeddings, rng):
    points = rng.uniform(0, SIDE, (2, 3, 2)).astype("f")
    labels = np.array([[1, 0, -1], [1, 1, 1]], np.int32)
    one_each = {"points": points[:, :, None], "labels": labels[:, :, None]}
    masks, iou = torch_decode(reference, embeddings, one_each, True)
    graphdef, state = nnx.split(ours)
    got = jax.jit(lambda state, *args: nnx.merge(graphdef, state).decode(*args))(
        state, embeddings, points, labels
    )
    assert_parity(got[0], masks, name="sam decode")
    assert_parity(got[1], iou, name="sam decode, iou")


def test_prompts_and_images_do_not_mix(ours, embeddings, rng):
    """Several prompts, more than a chunk holds, equal each decoded alone."""
    prompts = make_prompts(rng, "points box mask", k=PROMPT_CHUNK + 1)
    together = decode(ours, embeddings, prompts, True)
    for b, i in [(0, 0), (0, PROMPT_CHUNK), (1, 1), (1, PROMPT_CHUNK)]:
        one = {name: value[b : b + 1, i : i + 1] for name, value in prompts.items()}
        masks, iou = decode(ours, embeddings[b : b + 1], one, True)
        assert_parity(together[0][b, i], masks[0, 0])
        assert_parity(together[1][b, i], iou[0, 0])


def test_bad_prompts(ours, embeddings):
    with pytest.raises(SammiError, match="no prompt"):
        ours.decode_prompts(jnp.asarray(embeddings))
    with pytest.raises(SammiError, match="labels"):
        ours.decode_prompts(jnp.asarray(embeddings), points=jnp.zeros((2, 1, 1, 2)))


@pytest.mark.slow
def test_gradient_reaches_every_part(ours, image, rng):
    graphdef, trained, constant = nnx.split(ours, nnx.Param, ...)
    prompts = {k: jnp.asarray(v) for k, v in make_prompts(rng, "points mask").items()}

    def loss(trained):
        model = nnx.merge(graphdef, trained, constant)
        masks, iou = model.decode_prompts(model.encode_image(jnp.asarray(image)), **prompts)
        return (masks**2).mean() + (iou**2).mean()

    flat = nnx.to_flat_state(jax.jit(jax.grad(loss))(trained))
    zero = [path for path, leaf in flat if not np.abs(leaf.get_value()).max() > 0]
    unused = [
        path
        for path in zero
        if "no_mask_embed" in path or path[1:3] == ("output_hypernetworks_mlps", 0)
    ]
    assert len(unused) == 7
    zero = [path for path in zero if path not in unused]
    # A key's bias adds the same to all scores of a query: its gradient is 0 up to rounding.
    assert not [path for path in zero if path[-2:] != ("key", "bias")]


# Known mistakes must fail the gate


def assert_fails(ours, reference):
    with pytest.raises(AssertionError, match="rel_l2"):
        assert_parity(ours, reference, name="a known mistake")


def with_params(converted, changes: dict, **config) -> Sam:
    _, params, source = converted
    config = dataclasses.replace(source.config, **config)
    params = jax.tree.map(jnp.asarray, {**params, **changes})
    return build(lambda: Sam(config, rngs=Keys(0)), params)


@pytest.mark.parametrize("stack", ["windowed_blocks", "global_blocks"])
def test_swapped_relative_positions_fail(converted, image, embeddings, stack):
    h, w = (f"image_encoder/{stack}/block/attention/rel_pos_{axis}" for axis in "hw")
    params = converted[1]
    swapped = with_params(converted, {h: params[w], w: params[h]})
    assert_fails(encode(swapped, image), embeddings)


@pytest.mark.parametrize(
    "path", ["image_encoder/neck/conv2/kernel", "image_encoder/patch_embed/projection/kernel"]
)
def test_transposed_kernel_fails(converted, image, embeddings, path):
    kernel = converted[1][path]
    square = kernel.reshape(16, 16, 3, -1) if kernel.ndim == 2 else kernel
    mistaken = with_params(converted, {path: square.swapaxes(0, 1).reshape(kernel.shape)})
    assert_fails(encode(mistaken, image), embeddings)


def test_flipped_transposed_convolution_fails(reference, converted, embeddings, rng):
    path = "mask_decoder/output_upscaling/conv1/kernel"
    flipped = with_params(converted, {path: converted[1][path][:, ::-1, ::-1]})
    prompts = make_prompts(rng, "points")
    masks, _ = torch_decode(reference, embeddings, prompts, True)
    assert_fails(decode(flipped, embeddings, prompts, True)[0], masks)


def test_swapped_coordinates_fail(reference, ours, embeddings, rng):
    prompts = make_prompts(rng, "points")
    masks, _ = torch_decode(reference, embeddings, prompts, True)
    prompts["points"] = prompts["points"][..., ::-1]
    assert_fails(decode(ours, embeddings, prompts, True)[0], masks)


def test_missing_padding_point_fails(reference, ours, embeddings, rng):
    prompts = make_prompts(rng, "points")
    masks, _ = torch_decode(reference, embeddings, prompts, True)
    prompts["boxes"] = np.zeros((2, 3, 4), "f")  # instead of the padding point
    assert_fails(decode(ours, embeddings, prompts, True)[0], masks)


def test_tanh_gelu_fails(monkeypatch, ours, image, embeddings):
    monkeypatch.setitem(layers.ACTIVATIONS, "gelu", jax.nn.gelu)
    assert_fails(ours.encode_image(jnp.asarray(image)), embeddings)  # not compiled before


def test_decoder_eps_matters(embeddings, rng):
    """Where a norm's input is small, Meta's 1e-5 and transformers' 1e-6 are worlds apart."""
    prompts = make_prompts(rng, "points")
    masks = {}
    for eps in (1e-6, 1e-5):
        config = HfConfig(**SMALL)
        config.mask_decoder_config.layer_norm_eps = eps
        model = make_model(config)
        with torch.no_grad():
            for p in model.mask_decoder.transformer.layers[0].self_attn.out_proj.parameters():
                p.mul_(0.03)
        masks[eps] = torch_decode(model, embeddings, prompts, True)[0]
        ours, _, source = convert(tensors_of(model), model.config.to_dict())
        assert source.config.decoder_eps == eps
        low_res = decode(ours, embeddings, prompts, True)[0]
        assert_parity(low_res, masks[eps], name=f"sam decoder, eps {eps}")
    assert_fails(masks[1e-5], masks[1e-6])


def test_encoder_eps_matters(monkeypatch, reference, converted, image):
    params = converted[1]
    quiet = {
        path: params[path] * 0.03 for path in params if "patch_embed" in path or "pos_embed" in path
    }
    blocks = reference.vision_encoder
    tokens = 0.03 * (blocks.patch_embed(first(image)) + blocks.pos_embed)
    for layer in blocks.layers:
        tokens = layer(tokens)
    expected = last(blocks.neck(tokens)).detach().numpy()
    right = encode(with_params(converted, quiet), image)
    assert_parity(right, expected, name="sam image encoder, small tokens")
    monkeypatch.setattr(image_encoder, "EPS", 1e-5)
    assert_fails(encode(with_params(converted, quiet), image), expected)


# Published sizes


@pytest.mark.parametrize(
    ("name", "count"), [("vitb", 93_735_472), ("vitl", 312_342_832), ("vith", 641_090_608)]
)
def test_parameter_counts(name, count):
    """The published numbers are the trainable parameters, without the Fourier matrix.

    transformers holds that matrix as a parameter, in two places that share it: its
    ``num_parameters()`` is larger by 256, the values of its state dictionary by 512.
    """
    config = SAM_SIZES[name]
    make = lambda: Sam(config, rngs=Keys(0))  # noqa: E731
    model = nnx.eval_shape(make)
    trained, constant = (
        sum(math.prod(v.get_value().shape) for _, v in nnx.to_flat_state(nnx.state(model, kind)))
        for kind in (nnx.Param, Buffer)
    )
    assert (trained, constant) == (count, 256)
    assert sum(math.prod(a.shape) for a in abstract_params(make).values()) == count + 256
    per_stage = config.num_layers // config.num_stages
    vision = {
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "global_attn_indexes": list(range(per_stage - 1, config.num_layers, per_stage)),
    }
    with torch.device("meta"):
        model = SamModel(HfConfig(vision_config=vision))
    assert model.num_parameters() == count + 256
    assert sum(value.numel() for value in model.state_dict().values()) == count + 512


@pytest.mark.slow
def test_vit_b_at_its_real_size(rng):
    model = make_model(HfConfig())
    ours, _, source = convert(tensors_of(model), model.config.to_dict())
    assert source.config == dataclasses.replace(SAM_SIZES["vitb"], decoder_eps=1e-6)
    image = rng.normal(size=(1, 1024, 1024, 3)).astype("f")
    with torch.no_grad():
        embeddings = last(model.get_image_embeddings(first(image))).numpy()
    assert_parity(encode(ours, image), embeddings, name="sam ViT-B encoder at 1024")
    for kinds in ("points", "box", "points box mask"):
        prompts = make_prompts(rng, kinds, batch=1, k=2, side=1024)
        for multimask in (True, False):
            masks, iou = torch_decode(model, embeddings, prompts, multimask)
            ours_masks, ours_iou = decode(ours, embeddings, prompts, multimask)
            name = f"sam ViT-B decoder, {kinds}, {'multimask' if multimask else 'single'}"
            assert_parity(ours_masks, masks, name=name)
            assert_parity(ours_iou, iou, name=f"{name}, iou")
