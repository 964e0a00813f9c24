"""Extraction of the features that an evaluation lacks."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence

from pydantic import Field

from tandem.errors import OutputError
from tandem_jobs.run.block_run import PoolOptions, make_all
from tandem_workers.features.extract import Extraction
from tandem_workers.features.extractors import Extractor
from tandem_workers.features.feature_files import FeatureFiles, place_features
from tandem_workers.pictures.picture_block import PictureSource


class ExtractionOptions(PoolOptions):
    """How features are extracted. None of it changes numbers beyond rounding."""

    features_out: str | None = Field(
        None, description="folder or s3://bucket/prefix for the feature files; default: beside the pictures"
    )
    batch: int = Field(64, gt=0, le=65_536, description="images per forward")


def feature_files(source: PictureSource, extractor: Extractor, features_out: str | None) -> FeatureFiles:
    """Where the features of a place are, or will be."""
    if features_out is None:
        return place_features(source, extractor)
    name = re.sub(r"[^\w.-]+", "-", source.place.rstrip("/").rpartition("/")[2]).strip("-.") or "pictures"
    digest = hashlib.sha256(json.dumps(source.identity, sort_keys=True).encode()).hexdigest()
    return place_features(source, extractor, place=f"{features_out.rstrip('/')}/{name}-{digest[:8]}")


def check_writable(works: Sequence[Extraction]) -> None:
    """OutputError, before anything starts, where features that are missing cannot be put."""
    for work in works:
        try:
            if work.missing():
                work.files.store.check()
        except OutputError as error:
            hint = error.hint if "holds features" in str(error) else "--features-out PLACE keeps them elsewhere"
            raise OutputError(f"features of {work.source.place}: {error}", hint) from None


def extract_missing(works: Sequence[Extraction], options: ExtractionOptions) -> None:
    """Extract all features that are missing. Starts no Ray where none are."""
    check_writable(works)
    make_all(works, options)
