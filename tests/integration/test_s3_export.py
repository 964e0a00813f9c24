"""`tandem export` from and to a real S3 server."""

import json

import numpy as np

from support.damage import SHARDS, content, make
from support.s3_server import made_bucket
from tandem_jobs import export_dataset
from tandem_jobs.cli import main
from tandem_workers.dataset.commit import store_shard
from tandem_workers.pictures.source import open_pictures
from tandem_workers.storage.places import open_store


def test_an_export_goes_to_s3_is_resumed_there_and_comes_back(s3_server, tmp_path, monkeypatch, capsys):
    make(tmp_path / "in")
    monkeypatch.setattr("sys.argv", ["tandem", "export"])
    with made_bucket("exports"):
        out = "s3://exports/a/b"
        command = ["export", str(tmp_path / "in"), "--to", "folder", out, "--shard-size", "3"]
        with monkeypatch.context() as patch:
            patch.setattr(export_dataset, "store_shard", lambda *args: store_shard(*args) and interrupt())
            assert main(command) == 130
        assert main(command) == 0
        assert json.loads(capsys.readouterr().out)["resumed_shards"] == 1
        assert main(["verify", out]) == 0
        assert (
            main(["export", str(tmp_path / "in"), "--to", "folder", str(tmp_path / "here"), "--shard-size", "3"]) == 0
        )
        assert content(open_store(out)) == content(open_store(str(tmp_path / "here")))
        assert main(["export", out, "--to", "parquet", str(tmp_path / "back")]) == 0
        assert main(["export", out, "--to", "npz", str(tmp_path / "back.npz")]) == 0
    images = [image for shard in SHARDS for image in shard.images]
    assert open_pictures(str(tmp_path / "back")).read(0).encoded == images
    assert np.load(tmp_path / "back.npz")["arr_0"].shape == (10, 12, 12, 3)


def interrupt():
    raise KeyboardInterrupt
