"""Inputs of a job that are read and opened before anything starts: its label rows and the store of its dataset."""

from __future__ import annotations

from tandem.class_names import ClassNames
from tandem.timing import timed
from tandem_jobs.labels.label_file import read_label_file
from tandem_jobs.labels.labels import LabelRows, choose_classes, rows_of_classes
from tandem_jobs.options.options import PlaceOptions, RowOptions
from tandem_workers.storage.places import open_store
from tandem_workers.storage.store import Store


@timed("rows")
def read_rows(options: RowOptions, classes: ClassNames) -> LabelRows:
    if options.labels is not None:
        return read_label_file(options.labels, classes)
    assert options.classes is not None  # checked by the options
    return rows_of_classes(choose_classes(options.classes, classes), options.per_class, options.images)


@timed("output")
def open_output(options: PlaceOptions) -> Store:
    """The store of a dataset, checked before anything starts. Raises OutputError."""
    store = open_store(options.out)
    store.check()
    return store
