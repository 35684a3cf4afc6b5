"""The workspace that `--workspace` names: a folder, or a store as the options of `[vgg]` say."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.files import check_path, expanded
from pipeline.storage.mirror import default_cache, mirror_at
from pipeline.storage.store import check_url, is_url
from pipeline.workspace import Workspace
from pipeline.workspace.freshness import Chain
from tasks.settings import vgg

#: Workspaces in a store, by their address.
_workspaces: dict[str, Workspace] = {}


def workspace_at(address: str) -> Workspace:
    """The workspace in a folder, or in a store when `address` is a URL; raises `ConfigError` for one that cannot be."""
    if not is_url(address):
        folder = Path(address).absolute()
        check_path(folder, "--workspace")
        try:
            folder.exists()
        except OSError as error:  # a name that is too long, for example
            raise ConfigError(f"--workspace {address}: cannot be a folder: {error.strerror}") from None
        return Workspace(folder)
    if address not in _workspaces:
        settings = vgg()
        if not 0 <= settings.patience_seconds <= settings.stale_seconds / 2:
            raise ConfigError(
                f"[vgg] patience_seconds: found {settings.patience_seconds:g}, expected at most half of stale_seconds "
                f"({settings.stale_seconds:g}): a host that waits for the store longer than that could lose its locks"
            )
        cache = Path(expanded(settings.cache, "[vgg] cache")) if settings.cache else default_cache()
        check_path(cache, "[vgg] cache")
        mirror = mirror_at(check_url(address), cache, settings.patience_seconds, settings.stale_seconds)
        _workspaces[address] = Workspace(mirror.root, mirror)
    return _workspaces[address]


def looked_again(*chains: Chain) -> bool:
    """Before a no about a workspace in a store: True when that was looked at anew, as others may have been at work."""
    mirror = chains[0].workspace.mirror
    if mirror is None:
        return False
    if multiprocessing.parent_process() and mirror.process != os.getpid():  # forked by Luigi for one task
        mirror.process, mirror.doubtful_before = os.getpid(), time.monotonic()
    return mirror.know(chains, since=mirror.doubtful_before)
