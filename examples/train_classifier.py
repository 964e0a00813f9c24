"""Train a PyTorch classifier on a dataset that streams from S3, or from a folder.

    python examples/train_classifier.py s3://bucket/dataset --steps 500
    python examples/train_classifier.py out --steps 50

The dataset is one of `--format webdataset`, complete, with two shards or more. Nothing is copied to this machine: every
worker process reads shards of its own as they are needed. The last shard is held out, to print the accuracy on it.
Credentials, region and endpoint come from the standard AWS variables and files. Needs `pip install webdataset`.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlparse

import boto3
import numpy as np
import torch
import webdataset
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

SHUFFLED_IMAGES = 1000  # in the memory of each worker, which draws the next one from them


def open_s3(url: str, mode: str, bufsize: int) -> BinaryIO:
    """The body of an object as it arrives; a tar is read from front to back."""
    address = urlparse(url)
    return boto3.client("s3").get_object(Bucket=address.netloc, Key=address.path.lstrip("/"))["Body"]


webdataset.gopen_schemes["s3"] = open_s3


def shard_urls(dataset: str) -> list[str]:
    """Addresses of all shards, sorted. What stands in `shards/` of a complete dataset belongs to it."""
    address = urlparse(dataset)
    if address.scheme != "s3":
        names = sorted(map(str, Path(dataset).glob("shards/*.tar"))) if Path(dataset, "_SUCCESS").exists() else []
    else:
        client, prefix = boto3.client("s3"), f"{address.path.strip('/')}/".lstrip("/")
        client.head_object(Bucket=address.netloc, Key=f"{prefix}_SUCCESS")
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=address.netloc, Prefix=f"{prefix}shards/")
        keys = sorted(item["Key"] for page in pages for item in page.get("Contents", []))
        names = [f"s3://{address.netloc}/{key}" for key in keys if key.endswith(".tar")]
    if len(names) < 2:
        sys.exit(f"error: {dataset}: expected a complete dataset of two shards or more, got {len(names)}")
    return names


def to_sample(image: np.ndarray, label: int) -> tuple[Tensor, int]:
    """Pixels uint8 [H, W, 3] as float [3, H, W] in [-1, 1], and the label."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1, label


def stream(urls: list[str], batch: int, workers: int, train: bool) -> DataLoader:
    """Batches of pixels float [B, 3, H, W] and labels [B]; without end for training, each image once otherwise."""
    samples = webdataset.WebDataset(urls, resampled=train, shardshuffle=False)
    samples = samples.shuffle(SHUFFLED_IMAGES) if train else samples
    samples = samples.decode("rgb8").to_tuple("png;jpg;webp", "cls").map_tuple(np.array, int)
    return DataLoader(samples.map(lambda sample: to_sample(*sample)), batch_size=batch, num_workers=workers)


def make_model(num_classes: int, width: int = 32) -> nn.Module:
    """Four convolutions and a mean over the picture, whatever its size."""
    layers: list[nn.Module] = []
    for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width), (4 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, num_classes))


def accuracy(model: nn.Module, batches: DataLoader) -> float:
    with torch.inference_mode():
        right = torch.cat([model(pixels_B3HW).argmax(dim=1) == labels_B for pixels_B3HW, labels_B in batches])
    return right.float().mean().item()


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", help="folder or s3://bucket/prefix")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classes", type=int, default=1000, help="labels are below this number")
    parser.add_argument("--workers", type=int, default=2, help="processes that read and decode")
    options = parser.parse_args(argv)

    torch.manual_seed(0)
    *training, held_out = shard_urls(options.dataset)
    model = make_model(options.classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batches = stream(training, options.batch, options.workers, train=True)
    for step, (pixels_B3HW, labels_B) in enumerate(islice(batches, options.steps), 1):
        loss = F.cross_entropy(model(pixels_B3HW), labels_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == options.steps:
            print(f"step {step}: loss {loss.item():.3f}")
    result = accuracy(model.eval(), stream([held_out], options.batch, 0, train=False))
    print(f"accuracy on {held_out}: {result:.3f}")
    return result


if __name__ == "__main__":
    main()
