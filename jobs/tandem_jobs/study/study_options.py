"""Options that the studies share."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from tandem_jobs.options.options import GuidanceOptions, MeasuredOptions, Share


class StudyOutput(MeasuredOptions):
    """Models and output of a study, also of one that makes no images."""

    out: Path = Field(description="folder for the page, the numbers and the pictures; token ids in it are used again")
    threads: NonNegativeInt = Field(0, description="CPU threads; 0: one per core")

    @field_validator("out")
    @classmethod
    def check_folder(cls, out: Path) -> Path:
        """Before hours of work: ValueError for a file, or a folder below one."""
        if (there := next((path for path in (out, *out.parents) if path.exists()), None)) and not there.is_dir():
            raise ValueError(f"expected a folder, got the file {there}")
        return out


class StudyOptions(StudyOutput, GuidanceOptions):
    """Images of a study, and how they are made."""

    images: PositiveInt = Field(2400, description="images of every setting, spread evenly over the classes")
    seed: NonNegativeInt = Field(1, description="seed of the images; all settings share it")
    batch: PositiveInt = Field(64, description="images per forward")
    draft_steps: tuple[PositiveInt, ...] | None = Field(None, description="values of N; default: all")
    top_k: NonNegativeInt | None = Field(None, description="keep the k most likely codes; default: the model's own")
    top_p: Share | None = Field(None, description="keep codes up to this total probability; default: the model's own")
    temperatures: tuple[float, ...] | None = Field(None, description="one per scale; default: the model's own")
