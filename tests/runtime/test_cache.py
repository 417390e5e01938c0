"""The kernel cache: content, damage, concurrent and killed writers, collection."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plait.ir.errors import UsageError
from plait.ir.knobs import CACHE_DIR
from plait.runtime.cache import KernelCache

KEY = "0123456789abcdef"
OTHER = "fedcba9876543210"


@pytest.fixture
def cache(tmp_path: Path) -> KernelCache:
    return KernelCache(tmp_path / "cache")


def test_put_and_get(cache: KernelCache) -> None:
    assert cache.get(KEY) is None
    assert cache.put(KEY, b"code")
    assert cache.get(KEY) == b"code"
    assert cache.get(KEY, "tuning") is None
    assert cache.put(KEY, b"")
    assert cache.get(KEY) == b""


def test_the_default_root_is_the_knob(tmp_path: Path) -> None:
    with CACHE_DIR.set(tmp_path):
        assert KernelCache().root == tmp_path


@pytest.mark.parametrize("key", ["", "../../../../etc/passwd", "ABCDEF0123456789", "0123"])
def test_a_key_that_is_no_digest_is_refused(cache: KernelCache, key: str) -> None:
    with pytest.raises(UsageError, match="cache key"):
        cache.put(key, b"")


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "append", "foreign"])
def test_a_damaged_entry_is_a_miss_and_goes(cache: KernelCache, damage: str) -> None:
    cache.put(KEY, b"some object code")
    path = cache.path(KEY)
    data = path.read_bytes()
    path.write_bytes(
        {
            "truncate": data[:-3],
            "empty": b"",
            "flip": data[:-1] + bytes([data[-1] ^ 1]),
            "append": data + b"x",
            "foreign": b"\x7fELF" + data,
        }[damage]
    )
    assert cache.get(KEY) is None
    assert not path.exists()
    cache.put(KEY, b"anew")
    assert cache.get(KEY) == b"anew"


def test_sizes_and_collection_keep_the_recently_used(cache: KernelCache) -> None:
    keys = [f"{i:016x}" for i in range(4)]
    for i, key in enumerate(keys):
        cache.put(key, bytes(100))
        os.utime(cache.path(key), (i, i))
    cache.get(keys[0])
    size = cache.nbytes()
    assert size == sum(e.nbytes for e in cache.entries())
    removed = cache.gc(limit=size // 2)
    assert [e.key for e in removed] == keys[1:3]
    assert {e.key for e in cache.entries()} == {keys[0], keys[3]}
    assert len(cache.clear()) == 2
    assert cache.nbytes() == 0


def test_collection_leaves_foreign_files_and_young_temporaries(cache: KernelCache) -> None:
    cache.put(KEY, b"x")
    folder = cache.path(KEY).parent
    foreign = cache.root / "README"
    foreign.write_text("mine")
    young, old = folder / ".tmp-young", folder / ".tmp-old"
    young.write_bytes(b"")
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    cache.clear()
    assert foreign.exists() and young.exists() and not old.exists()


def test_a_cache_that_cannot_be_written_only_misses(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    cache = KernelCache(blocker / "cache")
    assert not cache.put(KEY, b"x")
    assert cache.get(KEY) is None
    assert cache.entries() == []


_WRITER = """
import sys
from pathlib import Path
from plait.runtime.cache import KernelCache
cache = KernelCache(Path(sys.argv[1]))
content = sys.argv[2].encode() * 500_000
print("ready", flush=True)
while True:
    cache.put("0123456789abcdef", content)
"""


def test_writers_in_other_processes_that_are_killed(tmp_path: Path) -> None:
    """A reader beside two writers of one key, killed mid-write, sees whole entries only."""
    root = tmp_path / "cache"
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(root), letter], stdout=subprocess.PIPE)
        for letter in "ab"
    ]
    cache = KernelCache(root)
    whole = {letter * 500_000 for letter in (b"a", b"b")}
    seen: set[bytes] = set()
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
        until = time.monotonic() + 20
        while len(seen) < 2 and time.monotonic() < until:
            content = cache.get(KEY)
            if content is not None:
                seen.add(content)
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
    assert seen == whole
    assert cache.get(KEY) in whole
    for path in root.rglob(".*.partial"):
        os.utime(path, (0, 0))
    cache.gc()
    assert [p.name for p in root.rglob("*") if p.is_file()] == [KEY]


def test_entries_are_for_whoever_the_umask_lets_read(cache: KernelCache) -> None:
    old = os.umask(0o022)
    try:
        cache.put(KEY, b"code")
    finally:
        os.umask(old)
    assert cache.path(KEY).stat().st_mode & 0o777 == 0o644
