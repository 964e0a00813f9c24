"""Edits of one picture: parts of it are drawn anew, the rest stays.

Shapes: B images, L tokens of all scales, H W pixels of the picture.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tandem.checks import check_whole
from tandem.collaborative import generate, generate_alone
from tandem.config import SamplingConfig
from tandem.edit_source import Source, latent_cells
from tandem.editing.canvas import Blend, Canvas, Fit
from tandem.editing.masks import Mask, Picture
from tandem.errors import InputError
from tandem.var import Var
from tandem.vqvae import Vqvae, rounded, to_float


@torch.inference_mode()
def edit(
    drafter: Var,
    refiner: Var,
    vqvae: Vqvae,
    picture: Picture,
    mask: Mask,
    labels_B: Tensor,
    uniforms_BL: Tensor,
    draft_steps: int,
    sampling: SamplingConfig,
    fit: Fit = "crop",
    blend: Blend = "feather",
    nearest: bool = False,
) -> NDArray[np.uint8]:
    """Draw the masked part of a picture anew, B times: uint8 [B, H, W, 3].

    Args:
        drafter: the transformer of scales 1..N.
        refiner: the transformer of scales N+1..K.
        vqvae: the tokenizer of both.
        picture: as `read_picture` gives it.
        mask: what is drawn anew, bool [H, W]. If nothing is, the picture comes back.
        labels_B: class of each image, whole numbers [B]; `num_classes` for none, which fills the hole without a class.
        uniforms_BL: random integers of each image, int64 [B, L], as `uniforms` gives them.
        draft_steps: N; 0: the refiner alone, K: the drafter alone.
        sampling: guidance, top-k, top-p and temperatures.
        fit: how the model's square lies in the picture, see `Canvas.of`.
        blend: how the square is put back, see `Canvas.put_back`.
        nearest: see `latent_cells`.

    Raises InputError for arguments that do not fit, JobError for logits that are not finite.
    """
    if mask.dtype != bool or mask.shape != picture.pixels.shape[:2]:
        raise InputError(f"mask: expected bool {list(picture.pixels.shape[:2])}, got {mask.dtype} {list(mask.shape)}")
    if not mask.any():
        return np.repeat(picture.pixels[None], len(labels_B), 0)
    config = drafter.config
    check_whole("draft_steps", draft_steps, 0, config.pyramid.num_scales)
    canvas = Canvas.of(fit, mask, vqvae.config.image_size)
    source = source_of(vqvae, canvas.square(picture.shown)[None], canvas.square_mask(mask)[None], nearest)
    source = Source(source.ids_BL.expand(len(labels_B), -1), source.drawn_Bhw.expand(len(labels_B), -1, -1))
    given = labels_B, uniforms_BL
    if draft_steps == 0:
        made_B3HW, _ = generate_alone(refiner, vqvae, *given, sampling.of_refiner, source)
    elif draft_steps == config.pyramid.num_scales:
        made_B3HW, _ = generate_alone(drafter, vqvae, *given, sampling, source)
    else:
        made_B3HW, _ = generate(drafter, refiner, vqvae, *given, draft_steps, sampling, source)
    made = rounded(made_B3HW).cpu().numpy()
    return np.stack([canvas.put_back(one, picture.pixels, mask, blend) for one in made])


def source_of(vqvae: Vqvae, pixels: NDArray[np.uint8], masks: NDArray[np.bool_], nearest: bool = False) -> Source:
    """The sources of a batch on the VQVAE's device: uint8 [B, S, S, 3] and bool [B, S, S]."""
    device = vqvae.post_quant_conv.weight.device
    pixels_B3HW = to_float(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2)).to(device)
    cells_Bhw = latent_cells(torch.from_numpy(masks), vqvae.config.pyramid.grid, nearest)
    return Source(vqvae.encode(pixels_B3HW), cells_Bhw.to(device))
