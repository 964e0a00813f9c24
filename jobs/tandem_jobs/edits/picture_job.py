"""What `tandem edit` and `tandem draft-edits` have alike: a job whose rows are edits of pictures."""

from __future__ import annotations

from typing import Any

from tandem_jobs.edits.edit_options import EditOptions
from tandem_jobs.edits.edit_sources import EditSources, place_record, rows_and_pictures
from tandem_jobs.labels.labels import LabelRows
from tandem_jobs.run.job import Job
from tandem_workers.dataset.identity import EDIT
from tandem_workers.pictures.put_back import PutBack
from tandem_workers.stages.edit_source_stage import SourceEncoder
from tandem_workers.stages.ray_data import Stage


class PictureJob(Job):
    """The part of such a job that reads pictures. A subclass sets the attributes before all others.

    Attributes:
        edit: the options.
        sources: pictures and masks; once the rows are read, for the image size of the models.
        put_back: how made pixels come into their pictures; None in a job without images.
    """

    edit: EditOptions
    sources: EditSources
    put_back: PutBack | None = None

    def read_rows(self) -> tuple[LabelRows, str]:
        rows, self.sources, self.models = rows_and_pictures(self.edit, self.sources, self.models)
        return rows, f"--labels: {self.edit.labels}"

    def before_draft(self) -> list[Stage]:
        return [SourceEncoder(self.sources.pictures, self.models, self.decoding, self.edit.nearest)]

    def identity(self, on_real_gpus: bool) -> dict[str, Any]:
        return super().identity(on_real_gpus) | self.sources.identity(self.edit.nearest, self.put_back)

    def info(self) -> dict[str, Any]:
        return super().info() | {EDIT: place_record(self.edit)}

    def describe(self) -> list[str]:
        return [self.sources.line, *super().describe()]
