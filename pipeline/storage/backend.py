"""fsspec and its back-ends: addresses of stores, connections, and what each back-end does in its own way.

fsspec and a back-end are imported when the first request is made: a workspace in a folder never needs them. Credentials
come from the places where the back-end itself looks for them.
"""

from __future__ import annotations

import contextlib
import errno
import tempfile
import urllib.parse
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.address import shown
from pipeline.errors import ConfigError, from_os_error

T = TypeVar("T")

#: What the disk here answers when a download does not fit on it.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

#: What object stores answer, in words, when a conditional write was refused because of another writer.
_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict", "pre-condition")

#: Errors (by name: their libraries are not imported here) that no second try can mend.
_HOPELESS = {
    "NoCredentialsError": "no credentials were found; set them up where the store's own tools look for them",
    "PartialCredentialsError": "the credentials are incomplete",
    "ProfileNotFound": "the credentials' profile does not exist",
    "TokenRetrievalError": "the credentials have expired; log in again",
    "UnauthorizedSSOTokenError": "the credentials have expired; log in again",
}

#: Which extra brings the back-end of a scheme.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "sftp": "sftp"}


def is_url(address: str) -> bool:
    """True for the address of a store, False for a folder's path."""
    return "://" in address


def check_url(address: str) -> str:
    """The address of a store in the one form that it is known by; raises `ConfigError` for one that cannot work."""
    scheme, _, rest = address.partition("://")
    try:
        parts = urllib.parse.urlsplit(f"x://{rest}")
    except ValueError as error:  # brackets where an IPv6 address would be
        raise ConfigError(f"--workspace {shown(address)}: {error}; expected for example s3://bucket/prefix") from None
    if parts.password is not None or parts.query or "…@" in shown(address):
        raise ConfigError(
            f"--workspace {shown(address)}: an address with a password or a query would end up in logs; give the "
            "credentials where the store's own tools look for them (environment, profile, ~/.ssh)"
        )
    if scheme == "memory":
        raise ConfigError(f"--workspace {address}: memory:// ends with its process; use a folder or an object store")
    if not rest.strip("/"):
        raise ConfigError(f"--workspace {address}: names no bucket or folder; expected for example s3://bucket/prefix")
    address = f"{scheme}://{rest.rstrip('/')}"
    _class(address)
    return address


def _class(url: str) -> Any:
    """fsspec's class for the scheme of an address. Raises `ConfigError` when there is none, or it is not installed."""
    import fsspec

    scheme = url.partition("://")[0]
    try:
        return fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        advice = f"pip install 'luigi-vgg[{extra}]'" if extra else "install the fsspec back-end for it"
        missing = f"needs a package that is not installed ({error}); {advice}"
        raise ConfigError(f"--workspace {shown(url)}: {missing}") from None
    except ValueError:
        expected = "expected a folder, or an address such as s3://bucket/prefix"
        raise ConfigError(f"--workspace {shown(url)}: unknown scheme {scheme}://, {expected}") from None


def connect(url: str) -> tuple[Any, str]:
    """A new connection to the store of an address, and the address as the back-end writes it."""
    import fsspec

    scheme, backend = url.partition("://")[0], _class(url)
    try:
        options: dict[str, Any] = backend._get_kwargs_from_urls(url)
        if scheme in ("s3", "s3a"):
            # The pauses between tries are ours; what a back-end adds to them would multiply.
            own = fsspec.config.conf.get(scheme, {}).get("config_kwargs", {})  # the user's, from fsspec's own files
            options |= {"config_kwargs": {"retries": {"total_max_attempts": 1}, **own}}
        # Not `url_to_fs`, which takes two colons in a name for two back-ends.
        fs, base = fsspec.filesystem(scheme, **options), str(backend._strip_protocol(url))
    except ValueError as error:  # an option that is missing or wrong
        raise ConfigError(f"--workspace {shown(url)}: {error}") from None
    if isinstance(getattr(fs, "retries", None), int):
        fs.retries = 1
    return fs, base.rstrip("/")


def is_shared(fs: Any) -> bool:
    """True for the back-end of an object store, False for that of a file server."""
    return bool(getattr(fs, "async_impl", False))


def download(fs: Any, path: str, file: str) -> None:
    """Download a file; raises `WorkspaceError` at once when the disk here is full, which is no fault of the store."""
    try:
        fs.get_file(path, file)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        error.filename = file
        raise from_os_error(error, f"keep a copy of {path} here") from error


def create(fs: Any, path: str, content: bytes) -> None:
    """Write a file or object; raises `FileExistsError` when there is one, `NotImplementedError` or `ValueError` where
    the back-end cannot tell.
    """
    try:
        if is_shared(fs):
            fs.pipe_file(path, content, mode="create")
        else:
            # paramiko wants both letters; those that refuse them have `x` alone.
            with fs.open(path, "wxb" if "sftp" in fs.protocol else "xb") as file:
                file.write(content)
    except OSError as error:
        conflict = any(word in str(error) for word in _CONFLICTS) if is_shared(fs) else fs.exists(path)
        if conflict:  # S3 and SFTP have no error of their own for it
            raise FileExistsError(path) from error
        raise


def copy(fs: Any, path: str, target: str) -> None:
    """Copy a file or object."""
    made(fs, target)
    try:
        fs.cp_file(path, target)
    except NotImplementedError:  # SFTP has no such request
        with tempfile.TemporaryDirectory() as folder:
            download(fs, path, f"{folder}/copy")
            fs.put_file(f"{folder}/copy", target)


def if_there(ask: Callable[[str], T], path: str) -> T | None:
    """What a request answers; None when there is no such file or object."""
    with contextlib.suppress(FileNotFoundError):
        return ask(path)
    return None


def made(fs: Any, path: str) -> str:
    """The path, its folder being there: object stores have none, file servers want one."""
    if not is_shared(fs):
        fs.makedirs(fs._parent(path), exist_ok=True)
    return path


def hopeless(error: Exception) -> str:
    """Why no second try can mend an error; empty when one may."""
    if isinstance(error, PermissionError):
        return f"permission denied ({said(error)}); check the credentials and the rights on the bucket"
    return _HOPELESS.get(type(error).__name__, "")


def said(error: Exception) -> str:
    """What an error says, in one short line."""
    text = " ".join(str(error).split()) or "no details"
    return f"{type(error).__name__}: {text[:200]}"
