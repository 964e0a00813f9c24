"""Which label each picture gets in what is made of it."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.errors import InputError
from tandem_workers.pictures.picture_block import NO_LABEL


@dataclass(frozen=True)
class ClassLabels:
    """Which labels the pictures get.

    `names`: in label order, None where labels are numbers alone. `labels`: for each label of the source the one in the
    set, None where they are the same.
    """

    names: tuple[str, ...] | None = None
    labels: tuple[int, ...] | None = None

    def label_of(self, source_label: int, name: str) -> int:
        """The label of a picture. InputError if it has none, or one beyond the names."""
        if source_label == NO_LABEL:
            raise InputError(f"{name}: expected a label, got none")
        known = self.labels if self.labels is not None else self.names
        if known is not None and source_label >= len(known):
            raise InputError(f"{name}: expected a label from 0 to {len(known) - 1}, got {source_label}")
        return source_label if self.labels is None else self.labels[source_label]
