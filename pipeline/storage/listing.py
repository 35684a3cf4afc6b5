"""What is in a store, by listings: of everything in it names, sizes and versions.

Either the whole store is listed, or only the folders that are asked about, whichever takes fewer requests.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterable, Iterator

from pipeline.storage.store import Store, Stored

#: Objects that a store lists with one request.
PAGE = 1000

#: Since when (monotonic) listings are trusted, and by which process.
_trusted = 0.0, os.getpid()


def distrust_listings() -> None:
    """From now on no listing of before is good for a no: other hosts may have finished something."""
    global _trusted
    _trusted = time.monotonic(), os.getpid()


def trusted_since() -> float:
    """A listing from before this moment (monotonic) is good for a yes, not for a no."""
    if _trusted[1] != os.getpid():  # forked by Luigi for one task
        distrust_listings()
    return _trusted[0]


class Listing:
    """What the last listings of a store said."""

    def __init__(self, store: Store, objects: int = 0) -> None:
        self.store = store
        #: How many there are, as far as that is known.
        self.objects = objects
        #: Folders whose small files here are those of the listing.
        self.synced: set[str] = set()
        self._there: dict[str, dict[str, Stored]] = {}  # folder -> name -> object
        #: When (monotonic) each folder was listed with all that is below it; "" is the workspace.
        self._listed: dict[str, float] = {}

    def get(self, key: str) -> Stored | None:
        folder, _, name = key.rpartition("/")
        return self._there.get(folder, {}).get(name)

    def note(self, key: str, stored: Stored | None) -> None:
        """Note an object that was written, or with None deleted, since it was listed."""
        folder, _, name = key.rpartition("/")
        if stored is None:
            self._there.get(folder, {}).pop(name, None)
        else:
            self._there.setdefault(folder, {})[name] = stored

    def folder(self, key: str) -> dict[str, Stored]:
        """The objects directly in a folder, by name."""
        return self._there.get(key, {})

    def below(self, key: str) -> dict[str, Stored]:
        """Every object of a folder ("" is the workspace) and the folders in it, by its key."""
        return {
            f"{folder}/{name}".lstrip("/"): stored
            for folder, names in self._there.items()
            if key in ("", folder) or folder.startswith(f"{key}/")
            for name, stored in names.items()
        }

    def folders(self, depth: int) -> set[str]:
        """The folders of so many parts that hold an object, however deep."""
        parts = (folder.split("/") for folder in self._there)
        return {"/".join(part[:depth]) for part in parts if len(part) >= depth}

    def refresh(self, keys: Iterable[str], since: float = 0.0) -> bool:
        """List the folders of which there is no listing, or one from before `since`; gives whether there was one."""
        wanted = {key for key in keys if not any(self._listed.get(folder, -1.0) >= since for folder in _above(key))}
        if not wanted:
            return False
        if "" in wanted or len(wanted) * PAGE >= self.objects:
            wanted = {""}
        started = time.monotonic()
        found: dict[str, Stored] = {}
        for part in self.store.each(self.store.find, wanted):
            found |= part
        self.replace(wanted, found)
        self._listed |= dict.fromkeys(wanted, started)
        if wanted == {""}:
            self.objects = len(found)
        return True

    def replace(self, keys: Iterable[str], found: dict[str, Stored]) -> None:
        """Take `found` for all that is in these folders."""
        tops = set(keys)

        @functools.cache
        def is_below(folder: str) -> bool:
            return not tops.isdisjoint(_above(folder))

        self._there = {folder: names for folder, names in self._there.items() if not is_below(folder)}
        self.synced = {folder for folder in self.synced if not is_below(folder)}
        for key, stored in found.items():
            self.note(key, stored)


def _above(key: str) -> Iterator[str]:
    """A folder and every folder that it is in, the workspace ("") first."""
    yield ""
    end = -1
    while (end := key.find("/", end + 1)) > 0:
        yield key[:end]
    if key:
        yield key
