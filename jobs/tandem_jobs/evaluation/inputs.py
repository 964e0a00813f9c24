"""What an evaluation reads, opened and checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from tandem.errors import InputError
from tandem_jobs.evaluation.class_match import default_extractor, names_of
from tandem_jobs.evaluation.extraction import ExtractionOptions, feature_files
from tandem_jobs.evaluation.feature_set import FeatureSet, open_features
from tandem_jobs.evaluation.reference_file import ReferencePlace, open_reference
from tandem_jobs.options.flags import POSITIONAL
from tandem_jobs.run.progress import say
from tandem_workers.features.choose_extractor import choose_extractor
from tandem_workers.features.extract import Extraction
from tandem_workers.features.extractors import Extractor
from tandem_workers.pictures.picture_block import PictureSource
from tandem_workers.pictures.source import open_pictures

DATASET, REFERENCE, AGAINST, TEST = "dataset", "reference", "against", "test"


class ComparisonOptions(ExtractionOptions):
    """What is compared, and by which network."""

    dataset: Annotated[str, POSITIONAL] = Field(description="pictures: a folder, a file, s3://bucket/prefix or key")
    reference: str | None = Field(None, description="real pictures, or an .npz file of their statistics (mu, sigma)")
    against: str | None = Field(None, description="another dataset: differences to it, paired where seeds are shared")
    test: str | None = Field(
        None,
        description="real labelled pictures, to test classifiers that are trained on the dataset and on --reference",
    )
    classifier_steps: PositiveInt | None = Field(
        None,
        description="for --test: train a small network on pixels for this many steps, with all pictures in memory; "
        "default: a linear probe on features",
    )
    features: str | None = Field(
        None,
        description="network: inception, efficientnet-lite0, embedded, or a TorchScript file (FILE.pt); default: "
        "embedded for its own classes, else inception if its file is given, else efficientnet-lite0",
    )
    inception: str | None = Field(None, description="file or address of inception-2015-12-05.pt, the standard network")
    resizer: Literal["pillow-bicubic", "clean", "tensorflow"] | None = Field(
        None, description="how pictures get the network's size; it changes every number; default: the network's own"
    )
    class_names: str | None = Field(
        None,
        description="names of the classes where pictures come without: 'embedded', 'imagenet' or a file",
    )

    @model_validator(mode="after")
    def check_test(self) -> ComparisonOptions:
        if self.classifier_steps is not None and self.test is None:
            raise ValueError("expected --test with --classifier-steps, real pictures to test on, got none")
        if self.test is not None and self.reference is None:
            raise ValueError("expected --reference with --test, real pictures to train on, got none")
        return self


@dataclass(frozen=True)
class Inputs:
    """
    Attributes:
        extractor: the network of all features.
        works: the extraction of each place that has pictures, by its part in the evaluation.
        class_names: names that the user gave for places without.
        classifier_steps: of a network on pixels, in place of a linear probe on features.
        reference: None where none was given.
    """

    extractor: Extractor
    works: Mapping[str, Extraction]
    class_names: str | None
    classifier_steps: int | None
    reference: ReferencePlace | None

    def features(self, part: str) -> FeatureSet | None:
        """The features of a place, which must be there by now; None where it was not given."""
        if (work := self.works.get(part)) is None:
            return None
        return open_features(work.source, work.files, names_of(work.source, self.class_names))

    @property
    def identities(self) -> dict[str, Any]:
        """The content of all places."""
        return {part: {"place": work.source.place, **work.source.identity} for part, work in self.works.items()}


def open_inputs(options: ComparisonOptions) -> Inputs:
    """Open all places. InputError for one that is missing, not complete, or of no known kind."""
    sources: dict[str, PictureSource] = {DATASET: open_pictures(options.dataset)}
    name = options.features
    if name is None:
        name, why = default_extractor(names_of(sources[DATASET], options.class_names), options.inception)
        say(f"--features {name}: {why}")
    network = choose_extractor(name, options.resizer, options.inception)
    reference = None
    if options.reference is not None:
        reference = open_reference(options.reference, network)
        if reference.pictures is not None:
            sources[REFERENCE] = reference.pictures
    for part, place in ((AGAINST, options.against), (TEST, options.test)):
        if place is not None:
            sources[part] = open_pictures(place)
    if TEST in sources and REFERENCE not in sources:
        raise InputError(
            "--test: expected real pictures to train on as --reference, got "
            + (f"statistics in {reference.place}" if reference else "none")
        )
    for source in sources.values():
        names_of(source, options.class_names)  # errors before anything starts
    works = {
        part: Extraction(source, network, feature_files(source, network, options.features_out), options.batch)
        for part, source in sources.items()
    }
    return Inputs(network, works, options.class_names, options.classifier_steps, reference)
