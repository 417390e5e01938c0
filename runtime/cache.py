"""The kernel cache on disk: content-addressed files that any number of processes may share.

An entry is one file, `<root>/<kind>/<first two digits>/<key>`, written aside and renamed, so that a
reader sees a whole entry or none and a killed writer leaves only a partial file for `gc`.  Each
file starts with the SHA-256 of the rest: a damaged entry is a miss.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from plait.ir.errors import UsageError
from plait.ir.knobs import CACHE_DIR, CACHE_LIMIT
from plait.ir.logs import logger
from plait.runtime.files import PARTIAL, replacing

log = logger(__name__)

OBJECTS = "objects"
_MAGIC = b"plait-cache-1\n"
_DIGEST = 32
_HEADER = len(_MAGIC) + _DIGEST
_STALE_S = 3600.0  # a partial file this old has no living writer
_KEY = re.compile(r"[0-9a-f]{16,128}")


@dataclass(frozen=True)
class Entry:
    """A cached file: its size in bytes and when it was last used, in seconds since the epoch."""

    kind: str
    key: str
    path: Path
    nbytes: int
    used: float


class KernelCache:
    """Bytes by key.  A cache that cannot be read or written is one that misses, with a warning."""

    def __init__(self, root: Path | None = None) -> None:
        """`root`: the folder, made at the first write; by default the knob `PLAIT_CACHE_DIR`."""
        self.root = CACHE_DIR.get() if root is None else root

    def get(self, key: str, kind: str = OBJECTS) -> bytes | None:
        """The entry's content, or None if there is none or it is damaged (then it is removed)."""
        path = self.path(key, kind)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("cannot read %s: %s", path, error)
            return None
        content = _verified(data)
        if content is None:
            log.warning("%s is damaged; it is compiled anew", path)
            _remove(path)
            return None
        _touch(path)
        return content

    def put(self, key: str, content: bytes, kind: str = OBJECTS) -> bool:
        """Store `content`; whether it could be.  The last of several writers of a key wins."""
        path = self.path(key, kind)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(_MAGIC + sha256(content).digest())
                file.write(content)
        except OSError as error:
            log.warning("cannot write %s: %s", path, error)
            return False
        return True

    def path(self, key: str, kind: str = OBJECTS) -> Path:
        """The file of a key.  A key is lower-case hex, 16 digits at least."""
        if not _KEY.fullmatch(key):
            raise UsageError(f"cache key {key!r}: expected at least 16 lower-case hex digits")
        return self.root / kind / key[:2] / key

    def entries(self) -> list[Entry]:
        """All entries, the longest unused first."""
        found: list[Entry] = []
        for path in self._files():
            if path.name.endswith(PARTIAL):
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            kind = path.parent.parent.name
            found.append(Entry(kind, path.name, path, stat.st_size, stat.st_mtime))
        return sorted(found, key=lambda e: (e.used, e.key))

    def nbytes(self) -> int:
        """The size of all entries together."""
        return sum(e.nbytes for e in self.entries())

    def gc(self, limit: int | None = None) -> list[Entry]:
        """Remove the longest unused entries until `limit` bytes remain, and old partial files.

        `limit` is by default the knob `PLAIT_CACHE_LIMIT`.  Returns what was removed.
        """
        bound = CACHE_LIMIT.get() if limit is None else limit
        self._remove_stale(time.time() - _STALE_S)
        entries = self.entries()
        excess = sum(e.nbytes for e in entries) - bound
        removed: list[Entry] = []
        for entry in entries:
            if excess <= 0:
                break
            _remove(entry.path)
            removed.append(entry)
            excess -= entry.nbytes
        return removed

    def clear(self) -> list[Entry]:
        """Remove every entry; returns what was removed."""
        return self.gc(limit=0)

    def remove_damaged(self) -> list[Entry]:
        """Hold every entry against its digest; remove those that do not fit and return them."""
        damaged = [e for e in self.entries() if _damaged(e.path)]
        for entry in damaged:
            _remove(entry.path)
        return damaged

    def _files(self) -> Iterator[Path]:
        # Three fixed levels: other files that someone keeps under the root are left alone.
        return (p for p in self.root.glob("*/[0-9a-f][0-9a-f]/*") if p.is_file())

    def _remove_stale(self, before: float) -> None:
        for path in self._files():
            try:
                if path.name.endswith(PARTIAL) and path.stat().st_mtime < before:
                    _remove(path)
            except FileNotFoundError:
                continue


def _damaged(path: Path) -> bool:
    try:
        return _verified(path.read_bytes()) is None
    except OSError as error:  # another process removed it, or it is not ours to read
        log.warning("cannot read %s: %s", path, error)
        return False


def _verified(data: bytes) -> bytes | None:
    """What follows the header, if its digest fits."""
    content = data[_HEADER:]
    if data[:_HEADER] != _MAGIC + sha256(content).digest():
        return None
    return content


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove %s: %s", path, error)


def _touch(path: Path) -> None:
    """Note the use for `gc`; another process may have removed the file, or own it."""
    try:
        os.utime(path)
    except OSError as error:
        log.debug("cannot note the use of %s: %s", path, error)
