"""`tandem edit`: from pictures and masks to a dataset of edited pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tandem_jobs.edits.edit_dataset import EditDataset, edited
from tandem_jobs.edits.edit_options import SHARED_HELP, BlendOptions, EditOptions
from tandem_jobs.edits.edit_sources import made_columns, open_sources
from tandem_jobs.edits.picture_job import PictureJob
from tandem_jobs.generate import PlacedJob, PlacedOptions, run_job
from tandem_jobs.run.batch_size import Workload
from tandem_workers.dataset.shards import ShardPlan
from tandem_workers.pictures.put_back import PutBack
from tandem_workers.storage.store import Store

EXAMPLES = f"""examples:
  tandem edit photo.png --mask mask.png --label flag --n 4 --out edited
  tandem edit photo.jpg --box 0.25,0.25,0.75,0.75 --label none --out filled
  tandem edit pictures/heldout --box 0.2,0.2,0.8,0.8 --label own --out inpainted
  tandem edit photos --masks masks --label fruit,flag,face --n 2 --format folder --out counterfactual
  tandem edit photos --labels edits.csv --out edited --codec jpeg
  tandem edit photo.png --expand 0.5,0,0.5,0 --label none --out wider

{SHARED_HELP}

Images have the size of their pictures, and columns say what was done: picture, picture_sha256, mask_sha256,
edited_share. Alpha is kept; what was drawn anew is opaque. --keep-tokens also keeps the ids of the picture and the
cells (source_tokens, drawn_cells: a bit a cell, np.unpackbits), which together with the drawn ids rebuild an edit.

The same command resumes where it stopped; other pictures or masks are another job, and are refused in the same
--out."""


class EditSpec(EditOptions, BlendOptions, PlacedOptions):
    """Draw parts of pictures anew: inpainting, editing by class, out-painting."""


class EditJob(PictureJob, PlacedJob):
    """Pictures with parts drawn anew."""

    put_back: PutBack

    def __init__(self, spec: EditSpec) -> None:
        self.edit, self.sources = spec, open_sources(spec)
        self.put_back = PutBack(spec.chosen_blend, spec.feather)
        super().__init__(spec)

    def open_dataset(self, store: Store, plan: ShardPlan) -> EditDataset:
        return edited(super().open_dataset(store, plan), made_columns(), self.sources.pictures, self.put_back)

    def workload(self) -> Workload:
        """The VQVAE encodes on the drafters' devices: as large as its decoder."""
        plain = super().workload()
        return replace(plain, devices=[tuple(dict.fromkeys((*names, "decode"))) for names in plain.devices])


def run(spec: EditSpec) -> dict[str, Any]:
    """Make the missing shards of a dataset of edited pictures, and return the summary."""
    return run_job(EditJob(spec))
