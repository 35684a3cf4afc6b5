"""Cached listings of a store: names, sizes and versions of its objects.

Lists either the whole store or only the folders in question, whichever takes fewer requests.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterable, Iterator

from pipeline.storage.store import Store, Stored

#: Objects that a store returns per list request.
PAGE = 1000

#: Time (monotonic) since which listings are trusted, and the PID of the process that set it.
_trusted = 0.0, os.getpid()


def distrust_listings() -> None:
    """Stop trusting present listings about what is missing: other hosts may have finished it."""
    global _trusted
    _trusted = time.monotonic(), os.getpid()


def trusted_since() -> float:
    """Return a time (monotonic). Listings from before it show what exists, but not what is missing."""
    if _trusted[1] != os.getpid():  # forked by Luigi for one task
        distrust_listings()
    return _trusted[0]


class Listing:
    """The objects of a store as of its last listings."""

    def __init__(self, store: Store, objects: int = 0) -> None:
        self.store = store
        #: Number of objects in the store, as far as known.
        self.objects = objects
        #: Folders whose small files are up to date locally.
        self.synced: set[str] = set()
        self._objects: dict[str, dict[str, Stored]] = {}  # folder -> name -> object
        #: When (monotonic) each folder was listed recursively; "" is the workspace.
        self._listed: dict[str, float] = {}

    def get(self, key: str) -> Stored | None:
        folder, _, name = key.rpartition("/")
        return self._objects.get(folder, {}).get(name)

    def note(self, key: str, stored: Stored | None) -> None:
        """Record that an object was written since it was listed; None if it was deleted."""
        folder, _, name = key.rpartition("/")
        if stored is None:
            self._objects.get(folder, {}).pop(name, None)
        else:
            self._objects.setdefault(folder, {})[name] = stored

    def folder(self, key: str) -> dict[str, Stored]:
        """Return the objects directly in a folder, by name."""
        return self._objects.get(key, {})

    def below(self, key: str) -> dict[str, Stored]:
        """Return every object below a folder ("" is the workspace), by key."""
        return {
            f"{folder}/{name}".lstrip("/"): stored
            for folder, names in self._objects.items()
            if key in ("", folder) or folder.startswith(f"{key}/")
            for name, stored in names.items()
        }

    def folders(self, depth: int) -> set[str]:
        """Return the folders `depth` levels down that hold an object at any depth."""
        parts = (folder.split("/") for folder in self._objects)
        return {"/".join(part[:depth]) for part in parts if len(part) >= depth}

    def refresh(self, keys: Iterable[str], since: float = 0.0) -> bool:
        """List the folders that were not listed since `since`. Returns whether there were any."""
        wanted = {key for key in keys if not any(self._listed.get(folder, -1.0) >= since for folder in _parents(key))}
        if not wanted:
            return False
        if "" in wanted or len(wanted) * PAGE >= self.objects:
            wanted = {""}
        started = time.monotonic()
        found: dict[str, Stored] = {}
        for part in self.store.map(self.store.find, wanted):
            found |= part
        self.replace(wanted, found)
        self._listed |= dict.fromkeys(wanted, started)
        if wanted == {""}:
            self.objects = len(found)
        return True

    def replace(self, keys: Iterable[str], found: dict[str, Stored]) -> None:
        """Replace the listing of these folders by `found`."""
        tops = set(keys)

        @functools.cache
        def is_below(folder: str) -> bool:
            return not tops.isdisjoint(_parents(folder))

        self._objects = {folder: names for folder, names in self._objects.items() if not is_below(folder)}
        self.synced = {folder for folder in self.synced if not is_below(folder)}
        for key, stored in found.items():
            self.note(key, stored)


def _parents(key: str) -> Iterator[str]:
    """Yield every parent of a folder from the workspace ("") down, then the folder itself."""
    yield ""
    end = -1
    while (end := key.find("/", end + 1)) > 0:
        yield key[:end]
    if key:
        yield key
