"""Extraction on Ray: killed and begun again, no block is extracted twice; what is wrong is one line; equal numbers of a
dataset in every form and place."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import boto3
import numpy as np
import pytest
import ray
from ray.data import DataContext

from support import picture_sources
from support.damage import make
from support.evaluations import evaluated, pictures, save_folder
from support.picture_sources import DrawnPictures, MeanColours, save_torchscript
from support.s3_server import made_bucket
from tandem.errors import InputError
from tandem_jobs.cli import main
from tandem_jobs.run import block_run
from tandem_jobs.run.backpressure import Flow, StageState, watch
from tandem_workers.features.choose_extractor import choose_extractor
from tandem_workers.features.extract import Extraction
from tandem_workers.features.feature_files import place_features
from tandem_workers.stages.block_actors import ActorPool, make_missing
from tandem_workers.stages.data_context import own_context
from tandem_workers.storage.places import open_store

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(autouse=True, scope="module")
def earlier_job(ray_cluster):
    """A job of three stages that ended before in this process: its limits are not those of an extraction."""
    with own_context() as context:
        watch(Flow([StageState(name, 1) for name in ("draft", "refine", "write")], False, 1), context)
    assert DataContext.get_current() is not context


def test_killed_and_begun_again_no_block_is_extracted_twice(tmp_path):
    ray.cloudpickle.register_pickle_by_value(picture_sources)  # workers have no tests
    extractor = choose_extractor(save_torchscript(tmp_path / "colours.pt", MeanColours(), '{"size": 8}'))
    source = DrawnPictures(str(tmp_path / "pictures"), num_blocks=8, log=str(tmp_path), dies_at=1)
    work = Extraction(source, extractor, place_features(source, extractor), batch=3)
    first = list(islice(make_missing(work, ActorPool()), 3))  # its first process dies at block 1
    assert (tmp_path / "died-1").exists()
    there = work.files.committed()
    assert {done.block for done in first} <= there
    reads = tmp_path / "reads"
    before = Counter(reads.read_text().split())
    again = list(make_missing(work, ActorPool()))
    assert {done.block for done in again} == set(range(8)) - there
    later = Counter(reads.read_text().split()) - before
    assert not {int(block) for block in later} & there
    assert all(done.pictures == 4 for done in again)
    index = np.concatenate([work.files.read(block).index for block in range(8)])
    np.testing.assert_array_equal(index, np.arange(32))
    assert list(make_missing(work, ActorPool())) == []

    broken = replace(source, place=str(tmp_path / "others"), num_blocks=2, dies_at=-1, broken=5)
    with pytest.raises(InputError, match=r"^005.png: not an image, despite its name$"):
        list(make_missing(replace(work, source=broken, files=place_features(broken, extractor)), ActorPool()))
    Path(extractor.source).unlink()
    gone = replace(broken, place=str(tmp_path / "third"), broken=-1)
    with pytest.raises(InputError, match="colours: expected a weights file, found nothing at "):
        list(make_missing(replace(work, source=gone, files=place_features(gone, extractor)), ActorPool()))
    assert "torchvision" not in sys.modules


def test_a_dataset_on_s3_and_on_disk_has_equal_numbers_and_no_block_is_extracted_twice(
    s3_server, tmp_path, capsys, monkeypatch
):
    colours = save_torchscript(tmp_path / "colours.pt", MeanColours(), '{"size": 8}')
    reference = save_folder(tmp_path / "reference", pictures(20))
    options = ("--reference", reference, "--features", colours, "--actors", "1")
    with made_bucket("evaluated"):
        places = ["s3://evaluated/set", str(tmp_path / "parquet"), str(tmp_path / "folder"), str(tmp_path / "set.npz")]
        for place, form in zip(places, ("webdataset", "parquet", "folder"), strict=False):
            store = make(place, form)
        assert main(["export", places[0], "--to", "npz", places[3]]) == 0

        def interrupted(work, pool):
            yield from islice(make_missing(work, pool), 1)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(block_run, "make_missing", interrupted)
            assert main(["evaluate", places[0], *options]) == 130
        store = open_store(places[0])
        files = [path for path in store.list_files("features") if path.endswith(".parquet")]
        for path in files[1:]:  # as if the others had not come that far
            store.remove(path)
        before = modified("evaluated", files[0])
        found = [evaluated(capsys, place, *options)[0] for place in places]
        assert modified("evaluated", files[0]) == before
        assert len([path for path in store.list_files("features") if path.endswith(".parquet")]) == 3
    for each in found:
        for key in ("dataset", "settings", "notes"):
            del each[key]
    assert found[0]["frechet_distance"] > 0
    assert all(each == found[0] for each in found)


def modified(bucket: str, path: str) -> tuple[str, object]:
    answer = boto3.client("s3").head_object(Bucket=bucket, Key=f"set/{path}")
    return answer["ETag"], answer["LastModified"]
