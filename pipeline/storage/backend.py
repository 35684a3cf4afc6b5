"""fsspec and its backends: addresses of stores, connections, and the differences between backends.

fsspec and a backend are imported on the first request, as a workspace in a folder never needs them. Credentials come
from wherever the backend itself looks for them.
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

#: Errors of the local disk when a download does not fit.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

#: Substrings of object stores' errors when a conditional write lost to another writer.
_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict", "pre-condition")

#: Errors that a retry cannot fix, by name, as their libraries are not imported here.
_PERMANENT = {
    "NoCredentialsError": "no credentials were found; set them up where the store's own tools look for them",
    "PartialCredentialsError": "the credentials are incomplete",
    "ProfileNotFound": "the credentials' profile does not exist",
    "TokenRetrievalError": "the credentials have expired; log in again",
    "UnauthorizedSSOTokenError": "the credentials have expired; log in again",
}

#: The extra that installs the backend of each scheme.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "sftp": "sftp"}

#: Schemes that fsspec knows but a workspace cannot use, and why.
_UNSUITABLE = {
    "memory": "memory:// ends with its process",
    "http": "a workspace needs more than a web server offers",
    "https": "a workspace needs more than a web server offers",
}


def is_url(address: str) -> bool:
    """Whether `address` is that of a store rather than the path of a folder."""
    return "://" in address


def check_url(address: str, option: str = "--workspace") -> str:
    """Return the canonical form of a store's address, given by `option`. Raises `ConfigError` if it cannot work."""
    scheme, _, rest = address.partition("://")
    try:
        parts = urllib.parse.urlsplit(f"x://{rest}")
    except ValueError as error:  # brackets where an IPv6 address would be
        raise ConfigError(f"{option} {shown(address)}: {error}; expected for example s3://bucket/prefix") from None
    if parts.password is not None or parts.query or "…@" in shown(address):
        raise ConfigError(
            f"{option} {shown(address)}: an address with a password or a query would end up in logs; give the "
            "credentials where the store's own tools look for them (environment, profile, ~/.ssh)"
        )
    if unsuitable := _UNSUITABLE.get(scheme):
        raise ConfigError(f"{option} {shown(address)}: {unsuitable}; use a folder or an object store")
    if not rest.strip("/"):
        raise ConfigError(f"{option} {address}: names no bucket or folder; expected for example s3://bucket/prefix")
    address = f"{scheme}://{rest.rstrip('/')}"
    _class(address, option)
    return address


def _class(url: str, option: str = "--workspace") -> Any:
    """Return fsspec's class for the scheme of an address. Raises `ConfigError` if it is unknown or not installed."""
    import fsspec

    scheme = url.partition("://")[0]
    try:
        return fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        advice = f"pip install 'luigi-vgg[{extra}]'" if extra else "install the fsspec backend for it"
        missing = f"needs a package that is not installed ({error}); {advice}"
        raise ConfigError(f"{option} {shown(url)}: {missing}") from None
    except ValueError:
        expected = "expected a folder, or an address such as s3://bucket/prefix"
        raise ConfigError(f"{option} {shown(url)}: unknown scheme {scheme}://, {expected}") from None


def connect(url: str) -> tuple[Any, str]:
    """Connect to a store. Returns the file system and the address in the backend's own form."""
    import fsspec

    scheme, backend = url.partition("://")[0], _class(url)
    try:
        options: dict[str, Any] = backend._get_kwargs_from_urls(url)
        if scheme in ("s3", "s3a"):
            # `Store` does the retries; those of a backend would multiply them.
            own = fsspec.config.conf.get(scheme, {}).get("config_kwargs", {})  # from the user's fsspec configuration
            options |= {"config_kwargs": {"retries": {"total_max_attempts": 1}, **own}}
        # Not `url_to_fs`, which reads two colons in a name as a chain of backends.
        fs, base = fsspec.filesystem(scheme, **options), str(backend._strip_protocol(url))
    except ValueError as error:  # a missing or invalid option
        raise ConfigError(f"--workspace {shown(url)}: {error}") from None
    if isinstance(getattr(fs, "retries", None), int):
        fs.retries = 1
    return fs, base.rstrip("/")


def is_object_store(fs: Any) -> bool:
    """Whether a backend is that of an object store rather than of a file server."""
    return bool(getattr(fs, "async_impl", False))


def download(fs: Any, path: str, file: str) -> None:
    """Download a file. Raises `WorkspaceError` if the local disk is full, as a retry cannot fix that."""
    try:
        fs.get_file(path, file)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        error.filename = file
        raise from_os_error(error, f"keep a local copy of {path}") from error


def create(fs: Any, path: str, content: bytes) -> None:
    """Write a file or object that must not exist yet.

    Raises `FileExistsError` if it does, `NotImplementedError` or `ValueError` if the backend cannot tell.
    """
    try:
        if is_object_store(fs):
            fs.pipe_file(path, content, mode="create")
        else:
            # paramiko needs both letters; other backends reject that and need `x` alone.
            with fs.open(path, "wxb" if "sftp" in fs.protocol else "xb") as file:
                file.write(content)
    except OSError as error:
        conflict = any(word in str(error) for word in _CONFLICTS) if is_object_store(fs) else fs.exists(path)
        if conflict:  # S3 and SFTP have no specific exception for it
            raise FileExistsError(path) from error
        raise


def copy(fs: Any, path: str, target: str) -> None:
    """Copy a file or object."""
    with_parent(fs, target)
    try:
        fs.cp_file(path, target)
    except NotImplementedError:  # SFTP cannot copy
        with tempfile.TemporaryDirectory() as folder:
            download(fs, path, f"{folder}/copy")
            fs.put_file(f"{folder}/copy", target)


def none_if_missing(request: Callable[[str], T], path: str) -> T | None:
    """Call `request(path)`. Returns None if there is no such file or object."""
    with contextlib.suppress(FileNotFoundError):
        return request(path)
    return None


def with_parent(fs: Any, path: str) -> str:
    """Return `path` after creating its folder, which file servers need and object stores do not have."""
    if not is_object_store(fs):
        fs.makedirs(fs._parent(path), exist_ok=True)
    return path


def permanent_failure(error: Exception) -> str:
    """Why a retry cannot fix an error; empty if it may."""
    if isinstance(error, PermissionError):
        return f"permission denied ({describe(error)}); check the credentials and the rights on the bucket"
    return _PERMANENT.get(type(error).__name__, "")


def describe(error: Exception) -> str:
    """Format an error as one short line."""
    text = " ".join(str(error).split()) or "no details"
    return f"{type(error).__name__}: {text[:200]}"
