"""CAT-Seg in PyTorch, the peer that ours is timed against; written from docs/catseg.md.

It does what the reference (cvlab-kaist/CAT-Seg@6d3a188) does, in the same order and layouts: the
class axis is folded into the batch, guidance is repeated for every class and concatenated, and the
class attention pads to 256 classes. Parameters have the reference's names, without its prefixes.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPModel

from sammi_jax.bench.torch_towers import clip_dense, torch_clip
from sammi_jax.config.model import AggregatorConfig, SegmenterConfig

ABSENT = -100.0  # logit of a class that an image does not keep, and bias between regions
GROUP = 16


class WindowAttention(nn.Module):
    """Attention within windows; queries and keys read features and guidance."""

    def __init__(self, dim: int, guidance: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k = nn.Linear(dim + guidance, dim), nn.Linear(dim + guidance, dim)
        self.v, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, dim: int, mask: Tensor | None) -> Tensor:
        """``x`` is ``[windows, tokens, dim + guidance]``, ``mask`` ``[n, tokens, tokens]``."""
        query, key, value = (
            rearrange(a, "b n (h d) -> b h n d", h=self.heads)
            for a in (self.q(x), self.k(x), self.v(x[..., :dim]))
        )
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if mask is not None:
            scores = rearrange(scores, "(b n) h i j -> b n h i j", n=len(mask))
            scores = rearrange(scores + mask[:, None], "b n h i j -> (b n) h i j")
        out = scores.softmax(dim=-1) @ value
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))


class Mlp(nn.Module):
    """Two linear layers with the exact GELU."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Window attention and MLP on the map of every class."""

    def __init__(self, config: AggregatorConfig, shift: int):
        super().__init__()
        dim, grid, window = config.hidden_dim, config.grid_size, config.window_size
        self.grid, self.window, self.shift = grid, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, config.appearance_dim, config.num_heads)
        self.mlp = Mlp(dim)
        mask = None
        if shift:
            cell = torch.arange(grid)
            part = (cell >= grid - window).int() + (cell >= grid - shift).int()
            region = self._cut((3 * part[:, None] + part)[None, :, :, None].float())[..., 0]
            mask = torch.where(region[:, :, None] == region[:, None], 0.0, ABSENT)
        self.register_buffer("mask", mask, persistent=False)

    def _cut(self, x: Tensor) -> Tensor:
        p = self.window
        return rearrange(x, "b (h p) (w q) c -> (b h w) (p q) c", p=p, q=p)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """``x`` and ``guidance`` are ``[b t, h w, c]``."""
        dim, grid, p = x.shape[-1], self.grid, self.window
        y = torch.cat([self.norm1(x), guidance], dim=-1)
        y = rearrange(y, "b (h w) c -> b h w c", h=grid)
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        y = self.attn(self._cut(y), dim, self.mask)
        side = grid // p
        y = rearrange(y, "(b h w) (p q) c -> b (h p) (w q) c", h=side, w=side, p=p)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        x = x + rearrange(y, "b h w c -> b (h w) c")
        return x + self.mlp(self.norm2(x))


class SwinPair(nn.Module):
    """Plain and shifted windows, with the normed appearance guidance."""

    def __init__(self, config: AggregatorConfig):
        super().__init__()
        self.block_1 = SwinBlock(config, 0)
        shifted = config.window_size < config.grid_size
        self.block_2 = SwinBlock(config, config.window_size // 2 if shifted else 0)
        self.guidance_norm = nn.LayerNorm(config.appearance_dim)

    def forward(self, x: Tensor, appearance: Tensor) -> Tensor:
        """``x`` is ``[b, c, t, h, w]``, ``appearance`` ``[b, g, h, w]``."""
        batch, _, classes, height, _ = x.shape
        x = rearrange(x, "b c t h w -> (b t) (h w) c")
        guidance = self.guidance_norm(rearrange(appearance, "b g h w -> b (h w) g"))
        guidance = repeat(guidance, "b n g -> (b t) n g", t=classes)
        x = self.block_2(self.block_1(x, guidance), guidance)
        return rearrange(x, "(b t) (h w) c -> b c t h w", b=batch, h=height)


class LinearAttention(nn.Module):
    """Queries and keys read features and text guidance; no output projection."""

    def __init__(self, dim: int, guidance: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k = nn.Linear(dim + guidance, dim), nn.Linear(dim + guidance, dim)
        self.v = nn.Linear(dim, dim)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """``x`` is ``[n, t, c]``, ``guidance`` ``[n, t, g]``."""
        guided = torch.cat([x, guidance], dim=-1)
        query, key, value = (
            rearrange(a, "n t (h d) -> n t h d", h=self.heads)
            for a in (self.q(guided), self.k(guided), self.v(x))
        )
        query, key = F.elu(query) + 1, F.elu(key) + 1
        count = value.shape[1]
        pairs = torch.einsum("nshd,nshv->nhdv", key, value / count)
        scale = 1 / (torch.einsum("nlhd,nhd->nlh", query, key.sum(dim=1)) + 1e-6)
        out = torch.einsum("nlhd,nhdv,nlh->nlhv", query, pairs, scale) * count
        return rearrange(out, "n t h d -> n t (h d)")


class ClassLayer(nn.Module):
    """Attention across classes at every location."""

    def __init__(self, config: AggregatorConfig):
        super().__init__()
        dim, text = config.hidden_dim, config.text_dim
        self.length = config.pad_length
        self.attention = LinearAttention(dim, text, config.num_heads)
        self.MLP = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, dim))
        self.padding_guidance = nn.Parameter(torch.zeros(1, 1, text))

    def forward(self, x: Tensor, text: Tensor, pooling: int) -> Tensor:
        """``x`` is ``[b, c, t, h, w]``, ``text`` ``[b, t, g]``."""
        batch, _, classes, height, width = x.shape
        y = F.avg_pool2d(rearrange(x, "b c t h w -> (b t) c h w"), pooling)
        h, w = y.shape[-2:]
        y = rearrange(y, "(b t) c h w -> (b h w) t c", b=batch)
        padding = max(self.length - classes, 0)
        if padding:
            tokens = repeat(self.padding_tokens, "1 1 c -> n t c", n=len(y), t=padding)
            y = torch.cat([y, tokens], dim=1)
            guidance = repeat(self.padding_guidance, "1 1 g -> b t g", b=batch, t=padding)
            text = torch.cat([text, guidance], dim=1)
        text = repeat(text, "b t g -> (b h w) t g", h=h, w=w)
        y = y + self.attention(self.norm1(y), text)
        y = y + self.MLP(self.norm2(y))
        y = rearrange(y, "(b h w) t c -> (b t) c h w", b=batch, h=h)
        y = F.interpolate(y, (height, width), mode="bilinear", align_corners=True)
        y = rearrange(y, "(b t) c h w -> b c t h w", b=batch)
        return x + y[:, :, :classes]


class Layer(nn.Module):
    """Aggregation over space, then over classes."""

    def __init__(self, config: AggregatorConfig):
        super().__init__()
        self.swin_block, self.attention = SwinPair(config), ClassLayer(config)


class DoubleConv(nn.Module):
    """Convolution, norm and ReLU, twice."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        groups = max(out // GROUP, 1)
        self.double_conv = nn.Sequential(
            nn.Conv2d(dim, out, 3, padding=1, bias=False),
            nn.GroupNorm(groups, out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.GroupNorm(groups, out),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``[b t, c, h, w]``."""
        return self.double_conv(x)


class Up(nn.Module):
    """Doubles the side; guidance is repeated for every class and concatenated."""

    def __init__(self, dim: int, guidance: int, out: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(dim, dim - guidance, 2, stride=2)
        self.conv = DoubleConv(dim, out)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """``x`` is ``[b t, c, h, w]``, ``guidance`` ``[b, g, 2h, 2w]``."""
        x = self.up(x)
        guidance = repeat(guidance, "b g h w -> (b t) g h w", t=len(x) // len(guidance))
        return self.conv(torch.cat([x, guidance], dim=1))


def _projection(dim: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim, out, 3, padding=1), nn.ReLU())


class TorchAggregator(nn.Module):
    """CAT-Seg's cost aggregation and decoder, linear attention only."""

    def __init__(self, config: AggregatorConfig, embed_dim: int):
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(config.num_templates, config.hidden_dim, 7, padding=3)
        self.guidance_projection = _projection(embed_dim, config.appearance_dim)
        self.text_guidance_projection = nn.Sequential(
            nn.Linear(embed_dim, config.text_dim), nn.ReLU()
        )
        projected = config.decoder_guidance_proj_dims
        self.decoder_guidance_projection = nn.ModuleList(
            map(_projection, config.decoder_guidance_dims, projected)
        )
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        first, second = config.decoder_dims
        self.decoder1 = Up(config.hidden_dim, projected[0], first)
        self.decoder2 = Up(first, projected[1], second)
        self.head = nn.Conv2d(second, 1, 3, padding=1)

    def forward(
        self,
        features: Tensor,
        appearance: Tensor,
        text: Tensor,
        guidance: tuple[Tensor, Tensor],
        pooling: int,
        remat: bool = False,
    ) -> Tensor:
        """Logits ``[b, t, 4h, 4w]``.

        Args:
            features: dense features ``[b, d, h, w]``, for the cost map.
            appearance: the same features, as guidance.
            text: embeddings ``[t, p, d]``.
            guidance: maps of two and four times the side.
            pooling: of the class attention.
            remat: recompute every stage in the backward pass.
        """
        batch, total = len(features), len(text)
        limit = self.config.pad_length
        image = F.normalize(features, dim=1)
        texts = repeat(F.normalize(text, dim=-1), "t p d -> b t p d", b=batch)
        cost = torch.einsum("bdhw,btpd->bpthw", image, texts)
        chosen = None
        if 0 < limit < total:
            best = cost.amax(dim=(1, 3, 4)).topk(limit, dim=-1, sorted=False).indices
            chosen = best
            texts = torch.gather(texts, 1, best[:, :, None, None].expand(-1, -1, *texts.shape[2:]))
            cost = torch.einsum("bdhw,btpd->bpthw", image, texts)
        x = self.conv1(rearrange(cost, "b p t h w -> (b t) p h w"))
        x = rearrange(x, "(b t) c h w -> b c t h w", b=batch)
        appearance = self.guidance_projection(appearance)
        projected = [
            project(level)
            for project, level in zip(self.decoder_guidance_projection, guidance, strict=True)
        ]
        mean = F.normalize(texts.mean(dim=2), dim=-1)
        text_guidance = self.text_guidance_projection(mean)
        run: Callable = _recomputed if remat else _direct
        for layer in self.layers:
            x = run(layer.swin_block, x, appearance)
            x = run(layer.attention, x, text_guidance, pooling)
        x = rearrange(x, "b c t h w -> (b t) c h w")
        x = run(self.decoder1, x, projected[0])
        x = self.head(run(self.decoder2, x, projected[1]))
        logits = rearrange(x, "(b t) 1 h w -> b t h w", b=batch)
        if chosen is None:
            return logits
        out = torch.full((batch, total, *logits.shape[2:]), ABSENT)
        return out.scatter(1, chosen[:, :, None, None].expand_as(logits), logits)


def _direct(module: nn.Module, *args):
    return module(*args)


def _recomputed(module: nn.Module, *args):
    return checkpoint(module, *args, use_reentrant=False)


class TorchCatSeg(nn.Module):
    """CLIP of transformers, up-sampling and `TorchAggregator`."""

    def __init__(self, config: SegmenterConfig):
        super().__init__()
        self.config = config
        width = config.clip.vision.width
        first, second = config.aggregator.decoder_guidance_dims
        self.clip: CLIPModel = torch_clip(config.clip)
        self.upsample1 = nn.ConvTranspose2d(width, first, 2, stride=2)
        self.upsample2 = nn.ConvTranspose2d(width, second, 4, stride=4)
        self.aggregator = TorchAggregator(config.aggregator, config.clip.embed_dim)

    def forward(self, pixels: Tensor, text: Tensor, pooling: int, remat: bool = False) -> Tensor:
        """Logits ``[b, t, 4h, 4w]`` of normalized pixels ``[b, 3, s, s]``."""
        low, taps = clip_dense(self.clip, pixels, self.config.taps)
        guidance = (self.upsample1(taps[0]), self.upsample2(taps[1]))
        return self.aggregator(low, low, text, guidance, pooling, remat)

    @torch.no_grad()
    def segment(self, views: Tensor, text: Tensor) -> Tensor:
        """Scores ``[t, o, o]`` on the canvas (docs/catseg.md part f, steps 4 to 6).

        Args:
            views: normalized windows, row by row, then the whole image: ``[v, 3, s, s]``.
            text: embeddings ``[t, p, d]``.
        """
        sliding = self.config.sliding
        assert sliding is not None
        crop, out, stride = self.config.crop_size, sliding.output_size, sliding.stride
        logits = self.forward(views, text, pooling=1)
        logits = F.interpolate(logits, (crop, crop), mode="bilinear", align_corners=False)
        scores = logits.sigmoid()
        total, count = scores.new_zeros(scores.shape[1], out, out), scores.new_zeros(out, out)
        starts = range(0, out - crop + 1, stride)
        corners = [(y, x) for y in starts for x in starts]
        for (y, x), view in zip(corners, scores[:-1], strict=True):
            total[:, y : y + crop, x : x + crop] += view
            count[y : y + crop, x : x + crop] += 1
        whole = F.interpolate(scores[-1:], (out, out), mode="bilinear", align_corners=False)[0]
        return (total / count + whole) / 2
