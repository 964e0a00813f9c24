"""Tokenizing on Ray: killed twice and begun again, every index is there once; equal ids from a folder and from S3."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from support.evaluations import pictures, save_folder
from support.runs import start, wait_until
from support.s3_server import made_bucket
from tandem.checkpoints.weights import load_vqvae
from tandem.image_folder import list_image_folder, read_image
from tandem_jobs.cli import main
from tandem_workers.storage.places import open_store
from tandem_workers.training.token_files import open_tokens, read_all
from tandem_workers.training.views import Views

pytestmark = pytest.mark.usefixtures("ray_cluster")
TARS, PER_TAR, VIEWS = 8, 30, 6


def put_tars(place: str, folder: str) -> None:
    """The pictures of an image folder, in its order, as a webdataset."""
    files, store = list_image_folder(Path(folder)).files, open_store(place)
    for tar in range(TARS):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            for number, file in enumerate(files[tar * PER_TAR : (tar + 1) * PER_TAR]):
                for suffix, content in (("png", file.path.read_bytes()), ("cls", str(file.label).encode())):
                    member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        store.put_once(f"{tar:05d}.tar", data.getvalue())


def put_blocks(place: str) -> dict[str, str]:
    return {path: version for path, version in open_store(place).versions().items() if path.endswith(".parquet")}


@pytest.mark.slow
def test_killed_twice_every_index_is_there_once_and_a_folder_has_the_same_ids(s3_server, tmp_path, tiny_models, capsys):
    folder = save_folder(tmp_path / "pictures", pictures(TARS * PER_TAR, side=20))
    vqvae = ("--vqvae", tiny_models["vqvae"], "--actors", "1", "--threads", "1")
    with made_bucket("tokens"):
        put_tars("s3://tokens/set", folder)
        command = ["tokenize", "s3://tokens/set", "--out", "s3://tokens/maps", "--views", str(VIEWS), *vqvae]
        before: dict[str, str] = {}
        for attempt in range(2):
            address = ray.get_runtime_context().gcs_address
            driver = start([*command, "--address", address], tmp_path / f"log{attempt}")
            wait_until(lambda: len(put_blocks("s3://tokens/maps")) > len(before), "another block is put")  # noqa: B023
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
            assert "_SUCCESS" not in open_store("s3://tokens/maps").list_files()
            before = put_blocks("s3://tokens/maps")
        assert main([*command, "--views", "2"]) == 2  # other views in the same place
        assert "views: there 6, here 2" in capsys.readouterr().err
        assert main(command) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["pictures"], result["classes"], result["skipped"]) == (TARS * PER_TAR, 2, 0)
        after = put_blocks("s3://tokens/maps")
        assert len(after) == TARS and {path: after[path] for path in before} == before
        files = open_tokens("s3://tokens/maps")
        index = np.concatenate([files.read(block).index for block in range(files.num_blocks)])
        tokens = read_all(files)
        assert main(command) == 0  # all is there
        assert json.loads(capsys.readouterr().out)["digest"] == result["digest"]
    assert index.tolist() == [tar * 2**32 + number for tar in range(TARS) for number in range(PER_TAR)]

    pixels = [read_image(file.path) for file in list_image_folder(Path(folder)).files]
    (tmp_path / "pictures" / "bee" / "99999.png").write_bytes(b"no image")
    assert main(["tokenize", folder, "--out", str(tmp_path / "maps"), "--on-error", "skip", *vqvae]) == 0
    assert "pictures left out: 1; skipped.jsonl" in capsys.readouterr().err
    here = read_all(open_tokens(str(tmp_path / "maps")))
    np.testing.assert_array_equal(here.ids[:, 0], tokens.ids[:, 0])
    np.testing.assert_array_equal(here.labels, tokens.labels)
    network, views = load_vqvae(tiny_models["vqvae"]), Views(16, VIEWS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the actors
    with torch.inference_mode():
        alone = [
            network.encode(view[None])[0]
            for at in range(0, len(pixels), 7)
            for view in views.of(pixels[at], int(index[at]))
        ]
    torch.set_num_threads(threads)
    np.testing.assert_array_equal(tokens.ids[::7].reshape(-1, 30), torch.stack(alone).numpy())
