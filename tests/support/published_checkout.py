"""A checkout with the interface of the published CoDe code (github.com/czg1225/CoDe), whose models compute nothing."""

from __future__ import annotations

import textwrap
from pathlib import Path

BUILDER = """
    import torch
    from huggingface_hub import PyTorchModelHubMixin, hf_hub_download

    class Model(torch.nn.Linear, PyTorchModelHubMixin, repo_url="none"):
        def autoregressive_infer_cfg(self, B, label_B, g_seed, more_smooth, cfg, top_p, top_k):
            return "alone", B, top_k
        def autoregressive_infer_cfg_draft(self, B, label_B, g_seed, more_smooth, cfg, top_p, top_k, temp, exit_num):
            return "f_hat", exit_num
        def autoregressive_infer_cfg_refine(self, draft, f_hat, entry_num, temp, **asked):
            return draft, f_hat, entry_num, len(temp)

    def build_vae_var_ctf(V, Cvae, ch, share_quant_resi, device, patch_nums, num_classes, depth_draft, depth_refine,
                          shared_aln):
        torch.nn.Linear.reset_parameters = lambda self: None
        return Model(2, 2), Model(depth_draft, 2), Model(depth_refine, 2)
"""


def write_checkout(folder: Path) -> Path:
    """Write the files into `folder`, which must exist, and return it."""
    (folder / "models").mkdir()
    (folder / "models" / "var.py").touch()
    (folder / "models" / "__init__.py").write_text(textwrap.dedent(BUILDER))
    return folder
