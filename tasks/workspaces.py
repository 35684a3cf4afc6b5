"""Opens the workspace of `--workspace`: a folder, or a store with the options of `[vgg]`."""

from __future__ import annotations

import os
import urllib.parse
from pathlib import Path

from pipeline import address, metrics
from pipeline.config import Config
from pipeline.errors import ConfigError, PipelineError, from_os_error
from pipeline.files import check_path, expanded
from pipeline.storage import check_url, default_cache, is_url, storage_at, trusted_since
from pipeline.workspace import Workspace
from pipeline.workspace.freshness import Chain, refresh
from tasks.log import log
from tasks.settings import vgg

#: Workspaces in a store, by address.
_workspaces: dict[str, Workspace] = {}


def workspace_at(address: str) -> Workspace:
    """The workspace in a folder, or in a store if `address` is a URL. Raises `ConfigError` for an unusable address."""
    if not is_url(address):
        try:
            folder = Path(address).absolute()
            check_path(folder, "--workspace")
            # Check twice: another command may be creating it right now.
            if not folder.is_dir() and os.path.lexists(folder) and not folder.is_dir():
                raise ConfigError(f"--workspace {address}: is a file or a broken link; give the path of a folder")
        except OSError as error:  # a name that is too long, or a deleted working directory
            raise ConfigError(f"--workspace {address}: not usable as a folder: {error.strerror}") from None
        return Workspace(folder)
    if address not in _workspaces:
        settings = vgg()
        if not 0 <= settings.retry_timeout <= settings.stale_seconds / 2:
            raise ConfigError(
                f"[vgg] retry_timeout: found {settings.retry_timeout:g}, expected at most half of stale_seconds "
                f"({settings.stale_seconds:g}): a host that waits longer for the store could lose its locks"
            )
        cache = Path(expanded(settings.cache, "[vgg] cache")) if settings.cache else default_cache()
        check_path(cache, "[vgg] cache")
        storage = storage_at(check_url(address), cache, settings.retry_timeout, settings.stale_seconds)
        _workspaces[address] = Workspace(storage.root, storage)
    return _workspaces[address]


def page_url(workspace: Workspace, page: Path) -> str | None:
    """The URL of a page of the workspace; None without `[vgg] workspace_url`."""
    base = address.shown(vgg().workspace_url).rstrip("/")
    return f"{base}/{urllib.parse.quote(page.relative_to(workspace.root).as_posix())}" if base else None


def write_metrics(workspace: Workspace, retrained: Config | None = None) -> None:
    """Write the `[vgg] metrics` file, if configured. Logs a failure instead of raising."""
    if vgg().metrics:
        try:
            metrics.write(Path(expanded(vgg().metrics, "[vgg] metrics")), workspace, retrained)
        except (OSError, PipelineError, ValueError, RecursionError) as error:
            why = from_os_error(error, "write it", "choose another place") if isinstance(error, OSError) else error
            log.warning("[vgg] metrics: not written: %s", why)


def refresh_if_stale(*chains: Chain) -> bool:
    """Before reporting something as missing, look for it in the store again. Returns whether anything was refreshed."""
    return refresh(chains, since=trusted_since())
