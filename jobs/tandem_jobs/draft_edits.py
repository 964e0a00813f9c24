"""`tandem draft-edits`: the drafter's half of an edit as a dataset of its own, which `tandem refine` finishes."""

from __future__ import annotations

from typing import Any

from tandem.config import Pyramid
from tandem_jobs.draft import DrafterOptions, DraftingJob, run_job
from tandem_jobs.edits.edit_options import SHARED_HELP, EditOptions
from tandem_jobs.edits.edit_sources import open_sources
from tandem_jobs.edits.picture_job import PictureJob
from tandem_jobs.run.batch_size import DRAFTERS
from tandem_workers.dataset.token_columns import cell_bytes

EXAMPLES = f"""examples:
  tandem draft-edits photos --masks masks --label fruit,flag,face --out drafts
  tandem refine --drafts drafts --out edited
  tandem refine --drafts drafts --out pasted --blend paste --cfg 2
  tandem draft-edits s3://bucket/photos --box 0.2,0.2,0.8,0.8 --label none --out s3://bucket/drafts

{SHARED_HELP}

Drafts hold the drawn ids of scales 1 to N, the ids of the pictures and the latent cells that are drawn anew. 'tandem
refine' reads the pictures and masks again to put the result back, at the same places unless its --pictures, --mask and
--masks name others, and compares them with the hashes in the drafts. Draft and refine with the same settings make the
bytes of 'tandem edit'. The same command resumes where it stopped."""


class DraftEditsSpec(EditOptions, DrafterOptions):
    """Make and store only the coarse token maps of edits, with drafters alone."""


class DraftEditsJob(PictureJob, DraftingJob):
    """Pictures to prefixes of their edits, by drafters alone."""

    stages = (*DRAFTERS, "decode")  # the VQVAE encodes there: as large as its decoder

    def __init__(self, spec: DraftEditsSpec) -> None:
        self.edit, self.sources = spec, open_sources(spec)
        super().__init__(spec)

    def bytes_of_row(self, pyramid: Pyramid) -> int:
        return super().bytes_of_row(pyramid) + 2 * pyramid.num_tokens + cell_bytes(pyramid.grid)


def run(spec: DraftEditsSpec) -> dict[str, Any]:
    """Draft the missing shards, and return the summary."""
    return run_job(DraftEditsJob(spec))
