"""The card of a token set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tandem_workers.dataset.card import fill, markdown_rows
from tandem_workers.training.token_info import TokenInfo

ENCODED = """View 0 is the plain one: the shorter side resized to the VQVAE's size, the centre cut out. Every other
view depends on the seed, the index and its number alone."""
KEPT = "The ids are those that models drew (`tandem generate --keep-tokens`): no image was encoded."


def render_token_card(identity: Mapping[str, Any], origin: Mapping[str, Any], info: TokenInfo) -> str:
    """Markdown with the YAML front matter of the Hugging Face hub.

    `identity`: see `tokens_identity`. `origin`: place of the pictures, VQVAE and command, as far as they are known.
    """
    names = info.class_names or [str(label) for label in range(info.num_classes)]
    left_out = f" Pictures left out: {info.skipped:,}; `skipped.jsonl` says which, and why." if info.skipped else ""
    pictures, kept = identity["pictures"], identity["batch"] is None
    facts = {
        "pictures": f"{origin.get('pictures', '')} ({pictures['kind']})".strip(),
        "VQVAE": info.vqvae,
        "its SHA-256": f"`{info.vqvae_sha256}`",
        "token maps": ", ".join(map(str, info.patch_nums)),
        "codes": info.vocab_size,
        "views of a picture": info.views,
        "augmentation of views 1 and up": identity["augment"] or "none",
        "seed": "" if identity["seed"] is None else identity["seed"],
        "pictures encoded at once": "none" if kept else identity["batch"],
        "made by": f"tandem {origin.get('tandem', '')}".strip(),
    }
    return fill(
        "token_template.md",
        {},
        rows=f"{info.rows:,}",
        num_classes=info.num_classes,
        left_out=left_out,
        facts=markdown_rows(facts.items()),
        views=info.views,
        num_tokens=info.num_tokens,
        about_views=KEPT if kept else ENCODED,
        command=origin.get("command", "tandem tokenize"),
        classes=markdown_rows((label, name, info.labels.get(label, 0)) for label, name in enumerate(names)),
    )
