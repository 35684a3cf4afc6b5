"""How results get into a store: files first, a stage's manifest last, so that no host takes a part for the whole."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import WorkspaceError
from pipeline.files import MANIFEST, read_json, sha256_file
from pipeline.storage.copies import Copies
from pipeline.storage.listing import Listing
from pipeline.storage.object_locks import ObjectLocks
from pipeline.storage.store import Store


class Publisher:
    """Uploads, moves and deletes. Every step first makes sure that this host's locks are still its own."""

    def __init__(self, store: Store, listing: Listing, copies: Copies, locks: ObjectLocks) -> None:
        self.store, self.listing, self.copies, self.locks = store, listing, copies, locks

    def publish(self, folder: Path, files: Mapping[str, Any], only: Mapping[str, str] | None) -> None:
        """Upload a finished stage's folder; `files` are those that its manifest recorded.

        With `only` just those that have the SHA-256 given there: the folder was not made now, so that what else is
        in it may be older than what is in the store. Raises `WorkspaceError` when that finally fails, `AlreadyRunning`
        when a lock was lost meanwhile; what was made stays here, and the next command publishes it.
        """
        self.locks.check()
        top, last = self.copies.key(folder), self.copies.key(folder / MANIFEST)
        here = {self.copies.key(path): path for path in sorted(folder.rglob("*")) if _counts(path)}
        here.pop(last, None)
        if only is not None:
            here = {key: path for key, path in here.items() if sha256_file(path) == only.get(key[len(top) + 1 :])}
        new = [key for key in here if not self.copies.is_copy(key, self.listing.get(key))]
        if not new and self.copies.is_copy(last, self.listing.get(last)):
            return
        self.copies.unpublished.add(last)
        if self.listing.get(last):
            self.store.delete([last])
        self.store.each(lambda key: self.store.put(here[key], key), new)
        self.listing.replace([top], self.store.find(f"{top}/"))
        if only is None:
            self._delete_gone(top)
        self.listing.synced.add(top)
        self._check_sizes(top, files)
        self.locks.check()
        self._write(last, folder / MANIFEST)
        self.copies.note({key: stored for key in [*here, last] if (stored := self.listing.get(key))})

    def publish_file(self, path: Path) -> None:
        """Upload a single small file, a pointer."""
        self.locks.check()
        key = self.copies.key(path)
        self.copies.unpublished.add(key)
        self._write(key, path)
        if stored := self.listing.get(key):
            self.copies.note({key: stored})

    def move(self, source: Path, target: Path) -> None:
        """Move a folder, or one file, within the workspace.

        All is copied, manifests last; then it is deleted where it was.
        """
        self.locks.check()
        start, end = self.copies.key(source), self.copies.key(target)
        keys = list(self.listing.below(start)) or ([start] if self.listing.get(start) else [])
        manifests = [key for key in keys if key.endswith(f"/{MANIFEST}")]
        others = [key for key in keys if key not in manifests]
        for part in (others, manifests):
            self.store.each(lambda key: self.store.copy(key, end + key[len(start) :]), part)
        self.listing.forget("trash")
        self.delete(source)

    def delete(self, folder: Path) -> None:
        """Delete a folder, or one file: its manifests first, so that nothing of it counts as finished any more."""
        top = self.copies.key(folder)
        keys = list(self.listing.below(top)) or [top]
        for finishes in (True, False):
            self.store.delete([key for key in keys if key.endswith(f"/{MANIFEST}") is finishes])
        self.listing.replace([top], {})
        self.listing.note(top, None)
        folder.unlink() if folder.is_file() else shutil.rmtree(folder, ignore_errors=True)
        self.copies.note(dict.fromkeys(keys))

    def serve(self, model: Path, about: bytes, version: Path, stable: Path) -> None:
        """Copy a model to its version, then to its stable key; of former versions the last one stays."""
        self.locks.check()
        source, top, new = (self.copies.key(path) for path in (model, stable, version))
        recorded = read_json(stable / MANIFEST)
        former = str(recorded.get("model")) if isinstance(recorded, dict) else ""
        for folder in (new, top):
            self.store.copy(source, f"{folder}/{model.name}")
            self.store.write(f"{folder}/{MANIFEST}", about)
        beside = top.rpartition("/")[0]
        kept = (new, f"{beside}/{former[3:].partition('/')[0]}")
        there = self.store.find(f"{beside}/")
        self.store.delete(key for key in there if key.startswith(f"{top}@") and key.rpartition("/")[0] not in kept)
        self.listing.replace([beside], self.store.find(f"{beside}/"))

    def _write(self, key: str, file: Path) -> None:
        self.store.write(key, file.read_bytes())
        if stored := self.store.info(key):
            self.listing.note(key, stored)
        self.copies.unpublished.discard(key)

    def _delete_gone(self, top: str) -> None:
        """Delete the objects whose files were here and are not any more: the stage replaced them by others."""
        keys = [key for key in self.listing.below(top) if self.copies.version(key) is not None]
        gone = [key for key in keys if not (self.copies.root / key).exists()]
        self.store.delete(gone)
        for key in gone:
            self.listing.note(key, None)
        self.copies.note(dict.fromkeys(gone))

    def _check_sizes(self, top: str, files: Mapping[str, Any]) -> None:
        for name, recorded in files.items():
            stored = self.listing.get(f"{top}/{name}")
            if stored is None or stored.size != recorded["size"]:
                found = f"{stored.size} bytes" if stored else "nothing"
                raise WorkspaceError(
                    f"{self.store}/{top}/{name}: {found} there after the upload, expected {recorded['size']} bytes"
                )


def _counts(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")
