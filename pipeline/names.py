"""Names that come from outside (out of a store, a manifest, a pointer): names, never paths, until they pass here."""

from __future__ import annotations

#: Bytes that a file system takes in one name, and S3 in all of them together.
_LONGEST, _LONGEST_PATH = 255, 1024


def is_name(text: str) -> bool:
    """True for what can name one file or folder: not `.` or `..`, nothing that cannot be printed, not too long."""
    plain = text.isprintable() and "/" not in text and text not in ("", ".", "..")
    return plain and len(text.encode()) <= _LONGEST


def is_relative_path(text: str) -> bool:
    """True for a plain relative name, one or more names with `/` between them: it leads down, and nowhere else."""
    return all(map(is_name, text.split("/"))) and len(text.encode()) <= _LONGEST_PATH
