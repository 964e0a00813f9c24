"""Files by https://HOST/FILE#sha256=HEX: the hash identifies the content, so any server may host it."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from tandem.errors import InputError
from tandem.hashing import file_sha256
from tandem.version import __version__
from tandem_workers.models.fetch import file_name
from tandem_workers.storage.waiting_notice import say_waiting

EXPECTED = "https://HOST/FILE#sha256=HEX, the hash of the file in 64 hexadecimal digits"
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 15
# Attempts without progress before giving up: 46 and 153 s for a silent server
ATTEMPTS, PATIENT_ATTEMPTS = 3, 8
SECRET = re.compile(r"sig|token|secret|password|credential|auth|key", re.IGNORECASE)


def fetch_from_http(address: str, cache: Path, patient: bool) -> tuple[Path, str]:
    """Local file and its hash. Data is hashed as it arrives; a broken download is resumed.

    A cached file needs no server. Raises InputError: one line, and what to do.
    """
    url, digest = split_address(address)
    target = cache / digest[:32] / (file_name(unquote(urlsplit(url).path)) or "file")
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists() or file_sha256(target) != digest:
            partial = target.with_name(target.name + ".part")
            receive(url, partial, digest, PATIENT_ATTEMPTS if patient else ATTEMPTS)
            partial.replace(target)
    return target, digest


def split_address(address: str) -> tuple[str, str]:
    """URL and hash. Raises InputError, also for an address with secrets, as job.json keeps addresses."""
    url, _, fragment = address.partition("#")
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    try:
        parts = urlsplit(url)
        usable = (
            parts.scheme in ("http", "https") and parts.hostname and parts.path.strip("/") and not re.search(r"\s", url)
        )
        parts.port  # noqa: B018 (ValueError for one out of range)
    except ValueError:
        usable = False
    if not match or not usable:  # the message omits parts that may be secret
        shown = re.sub(r"//[^/]*@|[?#].*", "", url)
        hexadecimal = re.fullmatch(r"sha256=([0-9a-fA-F]+)", fragment)
        got = f"with {len(hexadecimal[1])} of them" if hexadecimal else "without a hash"
        raise InputError(f"expected {EXPECTED}, got {shown} {got}", "sha256sum FILE prints the hash")
    if parts.username or parts.password or any(SECRET.search(name) for name, _ in parse_qsl(parts.query)):
        raise InputError(
            f"{parts.scheme}://{parts.hostname}: expected an address without user, password, token or signature",
            "addresses are kept in job.json; use s3:// or hf://, whose secrets stay in the environment",
        )
    return url, match[1].lower()


class Partial:
    """A partly downloaded file on disk, and the hash of what has arrived."""

    def __init__(self, path: Path) -> None:
        self.path, self.digest = path, hashlib.sha256()
        path.touch()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                self.digest.update(chunk)

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def restart(self) -> None:
        self.path.write_bytes(b"")
        self.digest = hashlib.sha256()

    def add_rest(self, url: str) -> None:
        """Append the missing part. Starts over if the server sends the whole file."""
        start = self.size
        headers = {"User-Agent": f"tandem/{__version__}"} | ({"Range": f"bytes={start}-"} if start else {})
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as response:
            if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                self.restart()
            with self.path.open("ab") as file:
                while chunk := response.read1(CHUNK_BYTES):
                    file.write(chunk)
                    self.digest.update(chunk)
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)


def receive(url: str, path: Path, expected: str, attempts: int) -> None:
    """Complete a partial file. If the result has the wrong hash because the earlier part was wrong, fetch it anew."""
    partial, failures = Partial(path), 0
    resumed = partial.size > 0
    last_data_at = time.monotonic()
    while True:
        before = partial.size
        try:
            partial.add_rest(url)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            # 416: nothing is missing, or there is too much already
            if not (isinstance(error, urllib.error.HTTPError) and error.code == 416 and before):
                if partial.size > before:
                    failures, last_data_at = 0, time.monotonic()
                else:
                    failures += 1
                fail_for_good(url, error, failures >= attempts)
                say_waiting(url, str(error) or type(error).__name__, last_data_at)
                time.sleep(min(0.2 * 2**failures, 10))
                continue
        found, size = partial.digest.hexdigest(), partial.size
        if found == expected:
            return
        if not resumed:
            path.unlink()
            problem = f"expected sha256 {expected}, got {found} ({size:,} bytes)"
            raise InputError(f"{url}: {problem}", "another file, or another version of it")
        resumed = False
        partial.restart()


def fail_for_good(url: str, error: Exception, exhausted: bool) -> None:
    """Raise InputError if a retry would not help, or if retries are exhausted."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        if error.code in (401, 403):
            hint = "the file has to be readable without a login; or use s3://, hf:// or a path"
            raise InputError(f"{url}: the server answered {error.code} {error.reason}", hint) from error
        if (error.code < 500 and error.code not in (408, 429)) or exhausted:
            raise InputError(f"{url}: the server answered {error.code} {error.reason}") from error
    elif exhausted:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        raise InputError(
            f"{url}: the server cannot be reached, or breaks off: {cause}", "run the same command again to resume"
        ) from error
