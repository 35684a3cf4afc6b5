"""A workspace in a store (see `pipeline.storage.store`), worked on through a folder here that has the same layout.

A listing of the store tells names, sizes and versions of everything in it. Small JSON files (manifests, pointers) are
kept here as they are there; big ones come when a stage needs them, and are checked. A stage does its work in the
folder as in any workspace; then its files are uploaded, its manifest last. Leaves `.mirror.json` in the folder: which
version of which object each file here is a copy of. The folder is disposable while no command runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from pipeline import names
from pipeline.errors import AlreadyRunning, ConfigError, WorkspaceError, from_os_error
from pipeline.files import open_regular, read_json, set_usual_mode, sha256_file
from pipeline.storage import locks
from pipeline.storage.object_locks import ObjectLock
from pipeline.storage.store import Store, Stored
from pipeline.workspace import MANIFEST, manifest

#: Files that are always kept here as they are in the store, besides those of the folders of pointers.
SMALL = (MANIFEST, "decision.json", "report.json", "ranking.json")

#: Stages' folders of a run, with that of the promotion gate.
STAGES = ("train", "evaluate", "export", "report", "promote")

#: Objects up to which one listing of everything (a request for each 1,000) beats listings of what is asked about.
LIST_ALL = 3000

#: Listings of single folders up to which they are fewer requests than a listing of everything.
FEW = 8

#: Into how many listings those of many folders are divided, several of which run at once.
AT_ONCE = 16

MEMORY = ".mirror.json"

#: What to do about a folder for copies that cannot be written.
INSTEAD = "choose another folder for copies ([vgg] cache in luigi.cfg, or XDG_CACHE_HOME)"


def shared_beginnings(places: Iterable[str], at_most: int) -> list[str]:
    """At most so many texts, of which each of `places` begins with one: as long as they can be."""
    groups: list[list[str]] = [sorted(places)]
    done: list[str] = []
    while groups:
        groups.sort(key=len)
        largest = groups.pop()
        common = os.path.commonprefix([largest[0], largest[-1]])  # noqa: RUF071 (by characters, as stores list)
        parts: dict[str, list[str]] = {}
        for place in largest:
            parts.setdefault(place[: len(common) + 1], []).append(place)
        if common in largest or len(done) + len(groups) + len(parts) > at_most:
            done.append(common)
        else:
            groups += parts.values()
    return sorted(done)


def _above(place: str) -> list[str]:
    """A folder and every folder that it is in, the workspace ("") first."""
    parts = place.split("/")
    return ["", *("/".join(parts[: number + 1]) for number in range(len(parts)))]


class _Memory(Struct, frozen=True):
    """What is in `.mirror.json`: of each file here the version that it is a copy of, its size and its time."""

    url: str
    objects: int = 0
    files: dict[str, Annotated[list[Any], Meta(min_length=3, max_length=3)]] = {}


class NotAsRecorded(WorkspaceError):
    """A file in the store is not what its manifest recorded. Nothing else is this error, least of all a bad network."""


class Lost(NotAsRecorded):
    """A file that a manifest recorded is not in the store, or has another size: whoever looks sees that it is lost."""


class Mirror:
    """The folder `root`, which mirrors the workspace in `store`. One for each address in a process, see `mirror_at`."""

    def __init__(self, store: Store, root: Path) -> None:
        self.store, self.root = store, root
        #: What the last listing said: folder -> name -> object.
        self._there: dict[str, dict[str, Stored]] = {}
        #: When (monotonic) each folder was listed with all that is below it; "" is the workspace.
        self._listed: dict[str, float] = {}
        #: When each folder's small files were last made to agree with the listing.
        self._agreed: dict[str, float] = {}
        #: Small files that were made here and are not in the store.
        self._unpublished: set[str] = set()
        self._memory: dict[str, list[Any]] = {}
        self._objects = 0
        self._memory_stat: tuple[int, int] | None = None
        #: A listing from before this moment is good for a yes, not for a no: other workers may have finished since.
        self.doubtful_before = 0.0
        #: The process that trusts `doubtful_before`; one that was forked has to set its own.
        self.process = os.getpid()
        self.locks: list[ObjectLock] = []
        self._load()

    # --- what is there ------------------------------------------------------------------------------------------

    def size(self, path: Path) -> int:
        """The size of the object that `path` mirrors. Raises `FileNotFoundError` when the store has none."""
        stored = self._stored(self.place(path))
        if stored is None:
            raise FileNotFoundError(f"{self.shown(path)}: not there")
        return stored.size

    def _stored(self, path: str) -> Stored | None:
        folder, _, name = path.rpartition("/")
        return self._there.get(folder, {}).get(name)

    def names(self, folder: Path) -> list[str]:
        """The names of the objects directly in a folder."""
        return sorted(self._there.get(self.place(folder), {}))

    def below(self, folder: Path) -> dict[str, Stored]:
        """Every object of a folder and the folders in it, by its path in the workspace."""
        top = self.place(folder)
        return {
            f"{place}/{name}": stored
            for place, names in self._there.items()
            if place == top or place.startswith(f"{top}/")
            for name, stored in names.items()
        }

    def unpublished(self, path: Path) -> bool:
        """True for a manifest or pointer that was made here and did not get into the store."""
        return self.place(path) in self._unpublished

    def place(self, path: Path) -> str:
        """A path in the mirror as seen from the workspace."""
        text, root = str(path), str(self.root)
        return text[len(root) + 1 :] if text.startswith(f"{root}/") else ""

    def shown(self, path: Path) -> str:
        """A path in the mirror as the address of the object."""
        return f"{self.store}/{self.place(path)}".rstrip("/")

    # --- listing and agreeing -----------------------------------------------------------------------------------

    def know(self, chains: Sequence[Any], since: float = 0.0) -> bool:
        """Have the listing and the small files of these chains (one configuration each) at hand.

        A listing from before `since` (monotonic) is taken anew; gives whether one was.
        """
        currents = [f"current/{name}" for name in {chain.config.data.name for chain in chains}]
        anew = self._list(["datasets", *currents], since)
        self._agree(["datasets/sources", *currents])
        runs = {run.root for chain in chains if (run := chain.run()) is not None}
        anew |= self._list([self.place(root) for root in runs], since)
        datasets = {folder for chain in chains if (folder := chain.dataset_folder()) is not None}
        folders = [self.place(folder) for folder in datasets]
        folders += [f"{self.place(root)}/{stage}" for root in runs for stage in STAGES]
        self._agree(folders)
        return anew

    def know_folders(self, folders: Iterable[Path], since: float = 0.0) -> None:
        """Have the listing and the small files of single folders at hand."""
        places = [self.place(folder) for folder in folders]
        self._list(places, since)
        self._agree(places)

    def know_runs(self, dataset: str = "*", run: str = "*", stages: Sequence[str] = STAGES) -> list[Path]:
        """Have the manifests of all runs of such names at hand; gives the runs' folders."""
        self._list(["runs"], 0.0)
        roots = {
            "/".join(place.split("/")[:3])
            for place in self._there
            if place.count("/") >= 3 and fnmatch.fnmatchcase(place, f"runs/{dataset}/{run}/*")
        }
        self._agree([f"{root}/{stage}" for root in sorted(roots) for stage in stages])
        return [self.root / root for root in sorted(roots)]

    def know_currents(self) -> list[str]:
        """Have all pointers to current models at hand; gives their folders."""
        self._list(["current"], 0.0)
        folders = [place for place in self._there if place.startswith("current/")]
        self._agree(folders)
        return folders

    def know_all(self) -> None:
        """Have a listing of everything, and all small files."""
        self._list([""], 0.0)
        self._agree([place for place in self._there if not place.startswith(("work/", "trash/", "events/"))])

    def _list(self, places: Sequence[str], since: float) -> bool:
        wanted = [place for place in dict.fromkeys(places) if not self._is_listed(place, since)]
        if not wanted:
            return False
        started = time.monotonic()
        if self._objects > LIST_ALL and len(wanted) > FEW and self.store.lists_beginnings:
            self._list_beginnings(set(wanted))
            self._listed.update(dict.fromkeys(wanted, started))
            return True
        if self._objects <= LIST_ALL or len(wanted) > FEW:
            wanted = [""]
        for place, found in zip(wanted, self.store.each(self.store.find, wanted), strict=True):
            self._take_in({place}, found)
            self._listed[place] = started
        if wanted == [""] and (self._objects > LIST_ALL) != (self._count() > LIST_ALL):
            self._remember({}, objects=self._count())
        return True

    def _list_beginnings(self, wanted: set[str]) -> None:
        """List many folders with a few listings at a time, by what their paths begin with."""

        def find(beginning: str) -> dict[str, Stored]:
            folder, _, name = beginning.rpartition("/")
            return self.store.find(folder, name)

        found: dict[str, Stored] = {}
        for part in self.store.each(find, shared_beginnings(wanted, AT_ONCE)):
            found |= part
        self._take_in(wanted, found)

    def _is_listed(self, place: str, since: float) -> bool:
        return any(self._listed.get(folder, -1.0) >= since for folder in _above(place))

    def _take_in(self, places: set[str], found: dict[str, Stored]) -> None:
        """Take a listing for all that is in these folders; what else it shows is left out."""

        @functools.cache
        def is_below(folder: str) -> bool:
            return not places.isdisjoint(_above(folder))

        for folder in [known for known in self._there if is_below(known)]:
            del self._there[folder]
            self._agreed.pop(folder, None)
        for path, stored in found.items():
            folder, _, name = path.rpartition("/")
            if is_below(folder):
                self._there.setdefault(folder, {})[name] = stored
        if "" in places:
            self._agreed.clear()

    def _count(self) -> int:
        return sum(map(len, self._there.values()))

    def _agree(self, folders: Iterable[str]) -> None:
        """Make the small files of folders here what the listing says is there; finds those that are only here."""
        wanted: dict[str, Stored] = {}
        for folder in folders:
            if folder not in self._agreed and not self._is_busy(folder):
                self._agreed[folder] = time.monotonic()
                wanted.update(self._outdated(folder))
        if not wanted:
            return
        contents = self.store.read_many(wanted)
        news: dict[str, list[Any] | None] = {}
        for path, content in contents.items():
            file = self.root / path
            if not (file.is_file() and file.read_bytes() == content):
                self.write(path, content)
            self._unpublished.discard(path)
            news[path] = [wanted[path].version, *_state(file)]
        self._remember(news)

    def _is_busy(self, folder: str) -> bool:
        """True while another process here works in a run's folder: its files are its own until it is done."""
        parts = folder.split("/")
        if parts[0] != "runs" or len(parts) != 4:
            return False
        other = locks.holder(self.root / "work" / "locks" / f"{'.'.join(parts[1:])}.lock")
        return other is not None and other.get("pid") != os.getpid()

    def _outdated(self, folder: str) -> dict[str, Stored]:
        """The small files of a folder to read from the store."""
        there = {name: stored for name, stored in self._there.get(folder, {}).items() if _is_small(folder, name)}
        here = {path.name: path for path in (self.root / folder).glob("*.json") if _is_small(folder, path.name)}
        wanted = {}
        for name in there.keys() | here.keys():
            path, stored, memory = f"{folder}/{name}", there.get(name), self._memory.get(f"{folder}/{name}")
            state = _state(here[name]) if name in here else None
            changed_here = state is not None and (memory is None or state != memory[1:])
            changed_there = (stored.version if stored else None) != (memory[0] if memory else None)
            self._unpublished.discard(path)
            if stored is None:
                if changed_here:
                    self._unpublished.add(path)
                elif state is not None:  # it was removed there, by another host
                    here[name].unlink(missing_ok=True)
            elif state is None or changed_there or read_json(here[name]) is None:
                wanted[path] = stored  # where both changed, what others may have built on wins
            elif changed_here and self.store.read(path) != here[name].read_bytes():
                self._unpublished.add(path)
        return wanted

    # --- fetching and publishing --------------------------------------------------------------------------------

    def fetch(self, folder: Path, everything: bool = False) -> None:
        """Have the files of a finished stage here as its manifest recorded them.

        With `everything` also what the manifest does not count: logs, the trainer's state. A folder without a
        manifest has nothing to fetch. Raises `NotAsRecorded` when a file there is not what it should be.
        """
        recorded = manifest.read(folder)
        if recorded is None:
            return
        place = self.place(folder)
        files = {f"{place}/{name}": about for name, about in recorded["files"].items()}
        digests = {f"{place}/{name}": digest for name, digest in manifest.digests(recorded).items()}
        wanted = dict.fromkeys([*files, *(self.below(folder) if everything else ())])
        wanted.pop(f"{place}/{MANIFEST}", None)
        news = self.store.each(lambda path: self._fetch_one(path, digests.get(path, ""), files.get(path)), wanted)
        self._remember({path: memory for path, memory in news if memory is not None})

    def fetch_log(self, file: Path) -> None:
        """Have a log here as it is in the store, unless the one here has lines of its own: it is added to."""
        if file.name in self._there.get(self.place(file.parent), {}):
            path, memory = self._fetch_one(self.place(file), "", None)
            self._remember({path: memory} if memory else {})

    def _fetch_one(self, path: str, digest: str, counted: dict[str, Any] | None) -> tuple[str, list[Any] | None]:
        """Have one file here: its path, and what to remember of it, or None where that has not changed.

        One that is `counted` (what the manifest says of it) must have its `digest`. Of others, whoever needs them
        judges: a training goes on without its momentum, for example.
        """
        file, stored, memory = self.root / path, self._stored(path), self._memory.get(path)
        if stored and memory and memory[0] == stored.version and file.is_file() and _state(file) == memory[1:]:
            return path, None
        if digest and file.is_file() and sha256_file(file) == digest:
            return path, [stored.version, *_state(file)] if stored else None
        if not digest and file.is_file() and (memory is None or _state(file) != memory[1:]):
            return path, None  # a log with lines that are only here

        def check(half: Path) -> None:
            if counted and half.stat().st_size != counted["size"]:
                raise Lost(f"{self.store}/{path}: has {half.stat().st_size} bytes, not {counted['size']} as recorded")
            if counted and sha256_file(half) != digest:
                raise NotAsRecorded(
                    f"{self.store}/{path}: damaged, not what its manifest recorded; restore it, or set the stage aside "
                    "(luigi --module tasks SetAside) to have it made again"
                )

        try:
            self.get(path, check)
        except FileNotFoundError:
            if not counted:
                return path, None
            raise Lost(f"{self.store}/{path}: is gone; run the same command again to have it made anew") from None
        return path, [stored.version, *_state(file)] if stored else None

    def get(self, path: str, check: Callable[[Path], None] = lambda half: None) -> None:
        """Have an object here, once `check` raised nothing about it. Raises `FileNotFoundError` when there is none."""
        with self._arriving(path) as half:
            self.store.get(path, half)
            check(half)

    @contextlib.contextmanager
    def _arriving(self, path: str) -> Iterator[Path]:
        """A file to be filled, which then takes its place below the mirror's root: all that comes in comes this way.

        Refused where a name, or a link in the mirror, leads elsewhere. Not synced to the disk: it can be had
        from the store again.
        """
        file = self.root / path
        folder = os.path.join(os.path.realpath(self.root), os.path.dirname(path))
        if not names.is_place(path) or os.path.realpath(file.parent) != os.path.normpath(folder):
            raise WorkspaceError(f"{file}: leads out of {self.root}: nothing is written there; remove it")
        with self._writing():
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, half = tempfile.mkstemp(dir=file.parent, prefix=".arriving.", suffix=".tmp")
        try:
            set_usual_mode(descriptor)
            os.close(descriptor)
            yield Path(half)
            with self._writing():
                os.replace(half, file)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(half)

    def write(self, path: str, content: bytes) -> None:
        """Have a small file here."""
        with self._arriving(path) as half, self._writing():
            half.write_bytes(content)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Around what is written here: an error is one of this host's folder, not of the store."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self.root)  # `write` leaves it out
            raise from_os_error(error, f"keep a copy of {self.store} here", INSTEAD) from error

    def publish(self, folder: Path, recorded_only: bool = False) -> None:
        """Upload a stage's folder, its manifest last, so that no other host ever takes a part for the whole.

        With `recorded_only` just the files that its manifest counts, and only as it recorded them: the folder was not
        made anew, so that what else is in it may be older than what is in the store.
        Raises `WorkspaceError` when that finally fails, `AlreadyRunning` when a lock was lost meanwhile; what was
        made stays here, and the next command publishes it.
        """
        recorded = manifest.read(folder)
        if recorded is None:
            return
        self.check_locks()
        place = self.place(folder)
        files = {
            f"{place}/{path.relative_to(folder).as_posix()}": path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".") and path != folder / MANIFEST
        }
        if recorded_only:
            digests = {f"{place}/{name}": digest for name, digest in manifest.digests(recorded).items()}
            files = {path: file for path, file in files.items() if sha256_file(file) == digests.get(path)}
        new = [path for path, file in files.items() if not self._is_published(path, file)]
        if not new and self._is_published(f"{place}/{MANIFEST}", folder / MANIFEST):
            return
        self._unpublished.add(f"{place}/{MANIFEST}")
        self.store.delete([f"{place}/{MANIFEST}"] if MANIFEST in self._there.get(place, {}) else [])
        self.store.each(lambda path: self.store.put(files[path], path), new)
        self._take_in({place}, self.store.find(place))
        if not recorded_only:
            self._delete_gone(folder)
        self._agreed[place] = time.monotonic()
        self._check_sizes(place, recorded)
        self.check_locks()
        self.store.write(f"{place}/{MANIFEST}", (folder / MANIFEST).read_bytes())
        stored = self.store.info(f"{place}/{MANIFEST}")
        if stored is not None:
            self._there.setdefault(place, {})[MANIFEST] = stored
        self._unpublished.discard(f"{place}/{MANIFEST}")
        self._remember_published({**files, f"{place}/{MANIFEST}": folder / MANIFEST})

    def _delete_gone(self, folder: Path) -> None:
        """Delete the objects whose files were here and are not any more: the stage replaced them by others."""
        gone = [path for path in self.below(folder) if path in self._memory and not (self.root / path).exists()]
        self.store.delete(gone)
        for path in gone:
            above, _, name = path.rpartition("/")
            del self._there[above][name]
        self._remember(dict.fromkeys(gone))

    def publish_file(self, path: Path) -> None:
        """Upload a single small file, a pointer."""
        self.check_locks()
        place = self.place(path)
        self._unpublished.add(place)
        self.store.write(place, path.read_bytes())
        stored = self.store.info(place)
        folder, _, name = place.rpartition("/")
        if stored is not None:
            self._there.setdefault(folder, {})[name] = stored
        self._unpublished.discard(place)
        self._remember_published({place: path})

    def _is_published(self, path: str, file: Path) -> bool:
        stored, memory = self._stored(path), self._memory.get(path)
        return stored is not None and memory is not None and memory == [stored.version, *_state(file)]

    def _check_sizes(self, place: str, recorded: dict[str, Any]) -> None:
        problems = manifest.file_problems(self.root / place, recorded, self.size)
        if problems:
            raise WorkspaceError(
                f"{self.store}/{place}: the upload did not arrive as it was sent: {'; '.join(problems)}"
            )

    def _remember_published(self, files: dict[str, Path]) -> None:
        news: dict[str, list[Any] | None] = {}
        for path, file in files.items():
            stored = self._stored(path)
            if stored is not None:
                news[path] = [stored.version, *_state(file)]
        self._remember(news)

    # --- moving and hashing -------------------------------------------------------------------------------------

    def move(self, folder: Path, target: Path) -> None:
        """Move a folder, or one file, within the workspace.

        All is copied, manifests last; then what counts as finished stops to count where it was, then the rest goes.
        """
        self.check_locks()
        start, end = self.place(folder), self.place(target)
        inside = self.below(folder) or ([start] if folder.name in self.names(folder.parent) else [])
        objects = sorted(inside, key=lambda path: path.endswith(f"/{MANIFEST}"))
        manifests = [path for path in objects if path.endswith(f"/{MANIFEST}")]
        for part in (objects[: len(objects) - len(manifests)], manifests):
            self.store.each(lambda path: self.store.copy(path, end + path[len(start) :]), part)
        self.store.delete(manifests)
        self.store.delete(objects[: len(objects) - len(manifests)])
        self._take_in({start}, {})
        for path in inside if inside == [start] else []:
            self._there.get(path.rpartition("/")[0], {}).pop(folder.name, None)
        self._listed.pop("trash", None)
        folder.unlink() if folder.is_file() else shutil.rmtree(folder, ignore_errors=True)
        self._remember(dict.fromkeys(objects))

    def sha256(self, path: Path) -> str:
        """SHA-256 of the object that a path mirrors, read from the store."""
        return self.store.sha256(self.place(path))

    # --- locks --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def hold(self, name: str, what: str, wait: bool, waiting: Any) -> Iterator[None]:
        """Hold the lock of this name against other hosts; raises `AlreadyRunning` as `locks.hold` does."""
        with ObjectLock(self.store, f"work/locks/{name}.lock").held(what, wait, waiting) as lock:
            self.locks.append(lock)
            try:
                yield
            finally:
                self.locks.remove(lock)

    def holder(self, name: str) -> dict[str, Any] | None:
        """Who holds the lock of this name, or None."""
        self._list(["work/locks"], 0.0)
        if f"{name}.lock" not in self._there.get("work/locks", {}):
            return None
        return ObjectLock(self.store, f"work/locks/{name}.lock").record()

    @property
    def lost(self) -> bool:
        """True when another host took over a lock that this process held."""
        return any(lock.lost for lock in self.locks)

    def check_locks(self) -> None:
        """Raise `AlreadyRunning` when a lock of this process was taken over; asks the store."""
        for lock in self.locks:
            if not lock.still_ours():
                raise AlreadyRunning(
                    f"{self.store}: {lock.path} was taken over by another host while this one could not be heard; "
                    "nothing was published"
                )

    # --- the memory ---------------------------------------------------------------------------------------------

    def _load(self) -> None:
        file = self.root / MEMORY
        with contextlib.suppress(OSError):
            self._memory_stat = (file.stat().st_mtime_ns, file.stat().st_ino)
        try:
            value = msgspec.convert(read_json(file), _Memory)
        except msgspec.ValidationError:
            value = _Memory("")
        self._memory = value.files if value.url == str(self.store) else {}
        self._objects = value.objects if value.url == str(self.store) else 0

    def _remember(self, news: dict[str, list[Any] | None], objects: int | None = None) -> None:
        """Note which versions the files here are copies of (None: of none); other processes do the same."""
        if not news and objects is None:
            return
        with self._writing():
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = open_regular(self.root / f"{MEMORY}.lock", os.O_WRONLY | os.O_CREAT)
        with os.fdopen(descriptor, "wb") as lock:
            with contextlib.suppress(OSError):  # no locks: who works here is told so by `locks.hold`
                fcntl.flock(lock, fcntl.LOCK_EX)
            file = self.root / MEMORY
            with contextlib.suppress(OSError):
                if (file.stat().st_mtime_ns, file.stat().st_ino) != self._memory_stat:
                    self._load()
            for path, memory in news.items():
                if memory is None:
                    self._memory.pop(path, None)
                else:
                    self._memory[path] = memory
            self._objects = self._objects if objects is None else objects
            value = {"url": str(self.store), "objects": self._objects, "files": self._memory}
            self.write(MEMORY, json.dumps(value).encode())
            self._memory_stat = (file.stat().st_mtime_ns, file.stat().st_ino)


def _is_small(folder: str, name: str) -> bool:
    pointers = folder == "datasets/sources" or folder.split("/")[0] == "current"
    return name in SMALL or (pointers and name.endswith(".json"))


def _state(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


# --- addresses ----------------------------------------------------------------------------------------------------

_mirrors: dict[tuple[str, Path], Mirror] = {}


def mirror_at(url: str, cache: Path, patience: float = 60.0, stale_seconds: float = 120.0) -> Mirror:
    """The mirror of an address (see `store.check_url`) in this process, in a folder of its own below `cache`."""
    scheme, _, rest = url.partition("://")
    name = f"{scheme}-{rest.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    root = (cache / name).absolute()
    if (url, root) not in _mirrors:
        _mirrors[url, root] = Mirror(Store(url, patience, stale_seconds), root)
    return _mirrors[url, root]


def mirror_of(path: Path) -> Mirror | None:
    """The mirror of this process that a path lies in."""
    return next((mirror for mirror in _mirrors.values() if mirror.place(path)), None)


def all_mirrors() -> list[Mirror]:
    """The mirrors of this process."""
    return list(_mirrors.values())


def default_cache() -> Path:
    """Where mirrors are unless told otherwise. Raises `ConfigError` for a user who has no home folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        raise ConfigError("this user has no home folder for copies of the store: set [vgg] cache or XDG_CACHE_HOME")
    return Path(base) / "luigi-vgg"
