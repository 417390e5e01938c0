"""An uncompressed zip whose members start at multiples of 64 bytes, so that they can be mapped."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable
from hashlib import sha256
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from plait.codegen.plan import ALIGNMENT

Piece = bytes | memoryview

_EPOCH = (1980, 1, 1, 0, 0, 0)  # one date for all: the same content gives the same bytes
_LOCAL_HEADER = 30  # bytes of a member's local header before its name
_ZIP64_FIELD = 20  # bytes of the field that zipfile puts before ours
_PAD_FIELD = 0xD935  # the tag that Android's zipalign pads with


class AlignedZipWriter:
    """Writes members one after the other; a context manager."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)

    def write(self, name: str, pieces: Iterable[Piece]) -> str:
        """Append a member made of `pieces`; returns its SHA-256 in hex."""
        digest = sha256()
        with self._zip.open(self._info(name), "w", force_zip64=True) as out:
            for piece in pieces:
                digest.update(piece)
                out.write(piece)
        return digest.hexdigest()

    def __enter__(self) -> AlignedZipWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._zip.close()

    def _info(self, name: str) -> zipfile.ZipInfo:
        """A header, padded so that the content after it is aligned."""
        info = zipfile.ZipInfo(name, _EPOCH)
        start = self._file.tell() + _LOCAL_HEADER + len(name.encode()) + _ZIP64_FIELD + 4
        pad = -start % ALIGNMENT
        info.extra = struct.pack("<HH", _PAD_FIELD, pad) + bytes(pad)
        return info


def read_directory(
    file: BinaryIO, data: NDArray[np.uint8], checked: str
) -> tuple[dict[str, tuple[int, int]], bytes]:
    """Where each member's content begins and ends in `data` (the whole file, uint8), and one member
    that is read and held against its CRC.

    Raises `ValueError` with a sentence if the zip is damaged, compressed or lacks that member.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            content = archive.read(checked)
    except (zipfile.BadZipFile, struct.error, EOFError, RuntimeError) as error:
        raise ValueError(f"not a whole zip file: {error}") from error
    except KeyError:
        raise ValueError(f"member {checked} is missing") from None
    offsets: dict[str, tuple[int, int]] = {}
    for info in infos:
        if info.filename in offsets:
            raise ValueError(f"member {info.filename} stands in it twice")
        offsets[info.filename] = _extent(info, data)
    return offsets, content


def _extent(info: zipfile.ZipInfo, data: NDArray[np.uint8]) -> tuple[int, int]:
    head = data[info.header_offset : info.header_offset + _LOCAL_HEADER].tobytes()
    if len(head) < _LOCAL_HEADER or info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"member {info.filename} is not stored plain")
    name_length, extra_length = struct.unpack("<HH", head[26:30])
    begin = info.header_offset + _LOCAL_HEADER + name_length + extra_length
    if begin + info.file_size > len(data):
        raise ValueError(f"member {info.filename} reaches past the end of the file")
    return begin, begin + info.file_size
