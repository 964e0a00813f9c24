"""Cleaning a bucket removes only uploads and objects of the dataset."""

from types import SimpleNamespace

import pytest

from tandem_workers.storage.s3_clean import abort_uploads


@pytest.mark.parametrize("prefix", ["", "data/"])
def test_closing_ends_no_upload_of_another_dataset_or_program(prefix):
    """At the root of a bucket, or above another dataset: the prefix of both is the same."""
    ours = {f"{prefix}{name}" for name in ("shards/00000.tar", "shards/00001-2.parquet", "images/metadata.parquet")}
    theirs = {f"{prefix}{name}" for name in ("other/shards/00000.tar", "backup.zip", "shards/model.bin")}
    given_up = set()
    pages = [{"Uploads": [{"Key": key, "UploadId": "u"} for key in ours | theirs]}, {}]
    client = SimpleNamespace(
        get_paginator=lambda name: SimpleNamespace(paginate=lambda **asked: pages),
        abort_multipart_upload=lambda Bucket, Key, UploadId: given_up.add(Key),
    )
    abort_uploads(client, "bucket", prefix, 0.0)
    assert given_up == ours
