"""A training step of CAT-Seg in PyTorch (docs/catseg.md part e)."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from sammi_jax.bench.torch_catseg import TorchCatSeg
from sammi_jax.bench.torch_towers import clip_text

RATE, CLIP_SCALE, DECAY, CLIP_NORM = 2e-4, 0.01, 1e-4, 0.01
IGNORED = 255


class Trainer:
    """AdamW in CAT-Seg's groups, clipping of the gradient, CLIP's query and value kernels.

    Args:
        model: CAT-Seg.
        remat: recompute activations in the backward pass.
    """

    def __init__(self, model: TorchCatSeg, remat: bool):
        self.model, self.remat = model.train(), remat
        norms = (nn.LayerNorm, nn.GroupNorm)
        of_norms = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, norms)
            for parameter in module.parameters(recurse=False)
        }
        groups = []
        for name, parameter in model.named_parameters():
            in_clip = name.startswith("clip.")
            parameter.requires_grad = not in_clip or name.endswith(
                ("q_proj.weight", "v_proj.weight")
            )
            if parameter.requires_grad:
                rate = RATE * CLIP_SCALE if in_clip else RATE
                decay = 0.0 if id(parameter) in of_norms else DECAY
                groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
        self.trained = [group["params"][0] for group in groups]
        self.optimizer = torch.optim.AdamW(groups)
        if remat:
            model.clip.gradient_checkpointing_enable({"use_reentrant": False})

    def step(self, pixels: Tensor, token_ids: Tensor, labels: Tensor) -> tuple[float, float]:
        """One update; the loss and the gradient's norm before clipping.

        Args:
            pixels: normalized, ``[1, 3, s, s]``.
            token_ids: of all classes, ``[t, 77]``.
            labels: ``[1, s, s]``, 255 ignored.
        """
        model = self.model
        text = F.normalize(clip_text(model.clip, token_ids), dim=-1)[:, None]
        pooling = model.config.aggregator.pooling_size
        logits = model(pixels, text, pooling, self.remat)
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
        classes = logits.shape[1]
        target = F.one_hot(labels.where(labels != IGNORED, classes), classes + 1)
        target = target[..., :classes].movedim(-1, 1).float()
        loss = F.binary_cross_entropy_with_logits(logits, target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.trained, CLIP_NORM)
        self.optimizer.step()
        return float(loss.detach()), float(norm)
