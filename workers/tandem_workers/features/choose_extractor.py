"""The extractor that a user asks for, by name or by file."""

from __future__ import annotations

from difflib import get_close_matches

from tandem.errors import InputError
from tandem_workers.features import efficientnet, embedded_classifier, inception
from tandem_workers.features.extractors import EFFICIENTNET_LITE0, EMBEDDED, EXTRACTORS, INCEPTION, Extractor
from tandem_workers.features.resizers import check_resizer
from tandem_workers.features.torchscript import find_torchscript


def choose_extractor(name: str, resizer: str | None = None, inception_file: str | None = None) -> Extractor:
    """The extractor of a name, or of a TorchScript file (`FILE.pt`, local or by address).

    Args:
        name: "inception", "efficientnet-lite0", "embedded", or a file.
        resizer: None: the extractor's own.
        inception_file: the standard Inception network; None: the variable TANDEM_INCEPTION names it.

    Raises InputError, or CheckpointError for a file that is missing, damaged or another one.
    """
    chosen = {} if resizer is None else {"resizer": check_resizer(resizer)}
    if name == INCEPTION:
        return inception.find_inception(inception_file, **chosen)
    if name == EFFICIENTNET_LITE0:
        return efficientnet.find_efficientnet(**chosen)
    if name == EMBEDDED:
        return embedded_classifier.find_embedded(**chosen)
    if name.endswith((".pt", ".pth", ".ts", ".torchscript")) or "/" in name:
        return find_torchscript(name, **chosen)
    near = get_close_matches(name, EXTRACTORS, 1)
    raise InputError(
        f"features: expected {', '.join(EXTRACTORS)} or a TorchScript file (FILE.pt), got {name!r}",
        f"did you mean {near[0]}?" if near else None,
    )
