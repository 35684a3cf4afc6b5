"""Checks for untrusted names (from a store, manifest or pointer). None becomes a path before it passes here."""

from __future__ import annotations

#: Limits in bytes: of a file system for one name, of S3 for a whole key.
_LONGEST, _LONGEST_PATH = 255, 1024


def is_name(text: str) -> bool:
    """Whether `text` can name one file or folder: printable, not too long, no `/`, not `.` or `..`."""
    plain = text.isprintable() and "/" not in text and text not in ("", ".", "..")
    return plain and len(text.encode()) <= _LONGEST


def is_relative_path(text: str) -> bool:
    """Whether `text` is one or more valid names joined by `/`, so that it cannot leave its folder."""
    return all(map(is_name, text.split("/"))) and len(text.encode()) <= _LONGEST_PATH
