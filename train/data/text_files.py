"""Text of a data file, line by line: packed or not, in UTF-8 or with a byte order mark.

Nothing is replaced: a byte that is no UTF-8, and a NUL, is refused with its line.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

PACKED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
PACKED_ENDINGS = (".gz", ".bz2", ".xz")
NO_TEXT = {
    b"PK\x03\x04": "is a zip archive or a spreadsheet; unpack it, or save it as CSV",
    b"\x28\xb5\x2f\xfd": "is packed with zstd; unpack it",
    b"PAR1": "is a parquet file; let its name end in .parquet",
}
MARKS = (  # the longer ones first: a mark of UTF-32 begins like one of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def lines_of(path: Path) -> Iterator[str]:
    r"""Lines with their ends, which may be \n, \r\n or \r.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no text, damaged, or in another encoding; with the line.
    """
    try:
        with _open(path) as raw:
            encoding = _encoding(path, raw)
            number = 0
            for number, line in enumerate(_wrapped(raw, encoding), 1):
                if "\0" in line:
                    raise ValueError(f"{path.name}, line {number}: holds a NUL character")
                yield line
    except UnicodeDecodeError as error:
        raise ValueError(_encoding_fault(path, error)) from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path.name}: is packed, but damaged: {error}") from error


def _wrapped(raw: BinaryIO, encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(raw, encoding=encoding, errors="strict", newline="")


def _open(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(6)
    for mark, opens in PACKED.items():
        if start.startswith(mark) and (mark != b"BZh" or start[3:4].isdigit()):
            return opens(path, "rb")
    for mark, why in NO_TEXT.items():
        if start.startswith(mark):
            raise ValueError(f"{path.name}: {why}")
    return path.open("rb")


def _encoding(path: Path, raw: Any) -> str:
    start = raw.read(4)
    raw.seek(0)
    if len(start) >= 2 and 0 in start[:2] and start[:2] != b"\0\0":
        hint = "is UTF-16 without a byte order mark? Type: iconv -f UTF-16 -t UTF-8 OLD > NEW"
        raise ValueError(f"{path.name}, line 1: holds a NUL character; {hint}")
    return next((name for mark, name in MARKS if start.startswith(mark)), "utf-8")


def _encoding_fault(path: Path, error: UnicodeDecodeError) -> str:
    """Where the first byte stands that is not in the file's encoding."""
    if not error.encoding.startswith("utf-8"):
        return f"{path.name}: is not {error.encoding} to its end: {error.reason}"
    with _open(path) as raw:
        for number, line in enumerate(raw, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as at:
                byte = at.object[at.start]
                return (
                    f"{path.name}, line {number}: byte 0x{byte:02X} is not UTF-8; if the file is "
                    "Latin-1, type: iconv -f LATIN1 -t UTF-8 OLD > NEW"
                )
    return f"{path.name}: is not UTF-8: {error.reason}"
