"""Fields that clients of other image servers send, and what they are called here.

Sources: the request types of Stable Diffusion web UI, vLLM-Omni, SGLang, Together, LocalAI and diffusers.
"""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

from tandem_workers.requests.api_schema import ImageBody

# Foreign fields that mean a field of ours
RENAMED = {
    "guidance_scale": "cfg",
    "guidance": "cfg",
    "cfg_scale": "cfg",
    "true_cfg_scale": "cfg",
    "num_images": "n",
    "num_images_per_prompt": "n",
    "num_outputs": "n",
    "num_outputs_per_prompt": "n",
    "batch_size": "n",
    "image_format": "output_format",
    "image_base64": "response_format",
}
SIZES = "here it is part of `size`, such as 64x64"
STEPS = "there are no diffusion steps here; `draft_steps` is the number of scales that the drafter makes"
TEXT = "there is none here: an image is of one class, and no text is encoded"
NONE = "there is none here"
# Foreign fields without an effect here, and why
WITHOUT_EFFECT = {
    "num_inference_steps": STEPS,
    "steps": STEPS,
    "step": STEPS,
    "sample_steps": STEPS,
    "negative_prompt": TEXT,
    "prompt_2": TEXT,
    "prompt_3": TEXT,
    "strength": "there is none here; `POST /v1/images/edits` has `keep_scales`",
    "guidance_scale_2": NONE,
    "flow_shift": NONE,
    "scheduler": NONE,
    "sampler": NONE,
    "sampler_name": NONE,
    "sampler_index": NONE,
    "sample_method": NONE,
    "mode": NONE,
    "clip_skip": NONE,
    "lora_scale": NONE,
    "loras": NONE,
    "lora": NONE,
    "image_loras": NONE,
    "disable_safety_checker": NONE,
    "enable_safety_checker": NONE,
    "safety_checker": NONE,
    "enable_teacache": NONE,
    "max_sequence_length": NONE,
    "vae_use_slicing": NONE,
    "vae_use_tiling": NONE,
    "generator_device": NONE,
    "use_negative_prompts_file": NONE,
    "restore_faces": NONE,
    "enable_hr": NONE,
    "hr_scale": NONE,
    "hr_upscaler": NONE,
    "input_fidelity": NONE,
    "extra_body": "its fields belong at the top",
}
FOREIGN = {name: f"here it is `{ours}`" for name, ours in RENAMED.items()} | WITHOUT_EFFECT
FOREIGN |= {"width": SIZES, "height": SIZES}
MAX_NAME = 40  # letters of a name that are compared
LIKENESS = 0.8  # of a misspelt name


def misspelt(name: str, fields: Collection[str] = ImageBody.model_fields) -> str | None:
    """The field, one of `fields`, that a name which is no field of another server is taken for; None: for none."""
    if name in FOREIGN:
        return None
    swapped = (ours for ours in fields if sorted(ours) == sorted(name))
    close = get_close_matches(name[:MAX_NAME], fields, 1, LIKENESS)
    return next(swapped, close[0] if close else None)
