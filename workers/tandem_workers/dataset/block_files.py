"""Files that are made of the blocks of a source of pictures: parquet, a file for each block, and what they are of.

FOLDER/
  identity.json     everything that changes the files; and versions, never compared
  00000.parquet     made of block 0 of the source; put once, whole or absent
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from tandem.errors import OutputError, one_line
from tandem.user_files import shown
from tandem.version import __version__
from tandem_workers.dataset.claim import as_json, diff_identity
from tandem_workers.dataset.seal import DamagedError, open_sealed, seal
from tandem_workers.storage.store import Store, Stored

IDENTITY = "identity.json"
KEYS = ("identity", "info")
MAX_NAMED = 3
DAMAGED = "remove it, and the same command makes it again"


@dataclass(frozen=True)
class BlockFiles:
    """The files of one source. Can be pickled.

    `holds`: what they hold, in messages. `made_by`: what made them of the pictures. `of_key`: in a file's metadata, the
    digest of the identity.
    """

    holds: ClassVar[str]
    made_by: ClassVar[str]
    of_key: ClassVar[bytes]

    store: Store
    folder: str  # in the store, "" for its root
    identity: dict[str, Any]
    num_blocks: int

    @property
    def place(self) -> str:
        return f"{self.store.uri}/{self.folder}".rstrip("/")

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest().encode()

    def path_of(self, name: str) -> str:
        """Path in the store of a file of the folder."""
        return f"{self.folder}/{name}" if self.folder else name

    def path(self, block: int) -> str:
        return self.path_of(f"{block:05d}.parquet")

    def committed(self) -> frozenset[int]:
        """Blocks whose files are there, from names alone. OutputError where the folder holds other files."""
        names = set(self.store.list_files(self.folder))
        if names:
            self.check_identity()
        return frozenset(block for block in range(self.num_blocks) if self.path(block) in names)

    def claim(self, info: Mapping[str, Any] | None = None) -> None:
        """Say in the place what its files are of. OutputError where it holds others, or cannot be written.

        `info`: more that is kept with the versions, from the first run.
        """
        self.store.check()
        packages = {name: version(name) for name in ("torch", "pillow", "numpy")}
        versions = {"tandem": __version__, "python": platform.python_version(), **packages}
        record = {"identity": self.identity, "info": {**versions, **(info or {})}}
        self.store.put_once(self.path_of(IDENTITY), seal(record))
        self.check_identity()

    def check_identity(self) -> None:
        """OutputError, one line, unless the files in the place are what these would be."""
        elsewhere = f"give another place for the {self.holds}"
        hint = f"remove {self.place}, or {elsewhere}"
        try:
            there = open_sealed(self.store.read(self.path_of(IDENTITY)), KEYS).get("identity")
        except FileNotFoundError:
            raise OutputError(f"{self.place} has files, but no {IDENTITY} of {self.holds}", elsewhere) from None
        except DamagedError as error:
            raise OutputError(f"{IDENTITY} in {self.place} {error}", hint) from None
        if differences := diff_identity(there, as_json(self.identity)):
            parts = [f"{name}: there {short(old)}, here {short(new)}" for name, old, new in differences[:MAX_NAMED]]
            raise OutputError(f"{self.place} holds {self.holds} of something else ({'; '.join(parts)})", hint)

    def put_columns(self, block: int, columns: Mapping[str, pa.Array], metadata: Mapping[bytes, bytes]) -> Stored:
        """Put a block's file unless it is there."""
        table = pa.table(dict(columns)).replace_schema_metadata({self.of_key: self.digest, **metadata})
        sink = io.BytesIO()
        pq.write_table(
            table, sink, compression="zstd", compression_level=1, use_dictionary=False, write_page_checksum=True
        )
        return self.store.put_once(self.path(block), sink.getvalue())

    @contextmanager
    def opened(self, block: int) -> Iterator[pq.ParquetFile]:
        """Context manager: a block's file for reading. OutputError where it is missing, damaged or not ours."""
        path = self.path(block)
        named = f"{path} in {self.store.uri}"
        try:
            with self.store.open(path) as stored, pq.ParquetFile(stored, page_checksum_verification=True) as file:
                if (file.schema_arrow.metadata or {}).get(self.of_key) != self.digest:
                    raise OutputError(f"{named} is not of these pictures and {self.made_by}", DAMAGED)
                yield file
        except FileNotFoundError:
            raise OutputError(f"{named} is missing", "run the same command again") from None
        except (pa.ArrowException, OSError, ValueError) as error:
            raise OutputError(f"{named} is damaged: {shown(one_line(error))}", DAMAGED) from None


def short(value: Any) -> str:
    """A value of an identity, for one line."""
    return shown("nothing" if value is None else json.dumps(value), 40)
