"""`tandem generate --overwrite` while another `tandem generate` writes to the same place."""

from __future__ import annotations

import json

import pytest

from support.runs import IMAGES, committed, job, start, wait_until
from tandem.images import read_provenance
from tandem_jobs.cli import main
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shard_reader import read_images_of
from tandem_workers.dataset.verify import verify
from tandem_workers.storage.places import open_store


@pytest.mark.slow
def test_every_image_is_of_the_job_that_replaced_the_other(ray_cluster, tiny_models, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    first = start(job(tiny_models, out, images=3000), log)  # more than it can make until the other has started
    wait_until(lambda: committed(out) >= 5, "five shards")
    argv = job(tiny_models, out, "--overwrite")
    argv[argv.index("--seed") + 1] = "4"
    assert main(argv) == 0
    assert first.wait(timeout=120) == 1
    errors = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "another job has taken this place (--overwrite)" in errors[0]
    store = open_store(str(out))
    assert not verify(store).problems
    files = [file.path for entry in Manifest(store).entries() for file in entry.files]
    seeds = [read_provenance(image).seed for path in files for image in read_images_of(path, store.read(path))]
    assert seeds == [4] * IMAGES
    assert json.loads(store.read("job.json"))["identity"]["decoding"]["seed"] == 4
