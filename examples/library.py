"""Decode with the library alone: own sampling for each image, and a preview after every scale.

    python examples/library.py previews.png

Each row of the picture is one image. From left to right: what is decided after scale 1, 2, ... 7.
Shapes: B images, K scales, L tokens of all scales, H W pixels.
"""

import sys

import numpy as np
import torch
from PIL import Image

from tandem import Prefix, SamplingConfig, decode, decode_scales, load_var, load_vqvae, uniforms
from tandem.zoo import weights_path

DRAFT_STEPS = 5  # N: scales of the drafter
FACE, HEART, FLAG = 0, 3, 5  # classes of the embedded model
# Every row of a batch may be sampled in its own way. Temperatures are one a scale; the last one repeats.
ROWS = [
    (FACE, SamplingConfig(cfg=3.0, top_k=0, top_p=0.9, temperatures=(1.0,))),
    (FACE, SamplingConfig(cfg=3.0, top_k=1, top_p=0.0, temperatures=(1.0,))),  # always the likeliest code
    (HEART, SamplingConfig(cfg=1.0, top_k=200, top_p=0.0, temperatures=(1.3, 1.2, 1.0))),  # coarse scales vary more
    (FLAG, SamplingConfig(cfg=6.0, top_k=0, top_p=0.8, temperatures=(0.9,))),
]


def main(out: str) -> None:
    drafter, refiner = load_var(weights_path("drafter")), load_var(weights_path("refiner"))
    vqvae = load_vqvae(weights_path("vqvae"))
    pyramid = drafter.config.pyramid
    labels_B = torch.tensor([label for label, _ in ROWS])
    sampling = [config for _, config in ROWS]
    uniforms_BL = uniforms(seed=0, index_B=np.arange(len(ROWS)), num_tokens=pyramid.num_tokens)

    shared = vqvae.quantize, labels_B, uniforms_BL
    none_B0 = torch.empty(len(ROWS), 0, dtype=torch.int64)
    drafted = list(decode_scales(drafter, *shared, none_B0, DRAFT_STEPS, sampling))
    # What travels from one GPU to another: 2 bytes a token, and nothing else
    prefix = Prefix.from_ids(drafted[-1], DRAFT_STEPS)
    print(f"prefix: {prefix.tokens.shape[1]} tokens, {prefix.tokens[0].nbytes} bytes an image")
    refined = list(decode_scales(refiner, *shared, prefix.ids(), pyramid.num_scales, sampling))
    previews = [decode(vqvae, ids_BL) for ids_BL in (*drafted, *refined)]

    pixels_BK3HW = torch.stack(previews, dim=1)
    picture_HW3 = torch.cat([torch.cat(list(row), dim=2) for row in pixels_BK3HW], dim=1).permute(1, 2, 0)
    Image.fromarray((picture_HW3 * 255).round().byte().numpy()).save(out)
    print(f"{out}: {len(ROWS)} images, {len(previews)} scales")


if __name__ == "__main__":
    main(*sys.argv[1:])
