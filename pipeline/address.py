"""Addresses of data sets and stores, which may hold passwords or tokens: how to show them, how to identify content."""

from __future__ import annotations

import re

#: Query parameters that grant access. If one is a signature, the others belong to it too.
_ACCESS = re.compile(r"(?i)token|secret|passw|credential|session|(api|access)[-_]?key|^auth(orization)?\Z")
_SIGNATURE = re.compile(r"(?i)(^|-)sig(nature)?\Z")


def shown(address: str) -> str:
    """Return `address` without user, password, query and fragment. Paths are returned unchanged.

    Drops everything that may be a password if the address is malformed, as in `https://user:pa/ss@host/`.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    host, after = _split_host(rest)
    password = ":" in host.partition("@")[0]
    if "@" in _without_query(after):
        ambiguous = password or scheme.startswith(("http", "ftp"))  # object stores allow @ in names
    else:
        ambiguous = password and "@" in after and "@" not in host
    if ambiguous:
        return f"{scheme}://…@{_without_query(rest.rpartition('@')[2])}"
    return f"{scheme}://{host.rpartition('@')[2]}{_without_query(after)}"


def redact(text: str) -> str:
    """Strip the secrets from every address in a text, such as a library's error message."""
    return re.sub(r"[A-Za-z][\w+.-]{0,30}://[^\s\"]+", lambda match: shown(match[0]), text)  # bounded: linear time


def identity(address: str) -> str:
    """Return what identifies the content: the address without user, password, fragment and access parameters."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    host, after = _split_host(rest)
    path, _, query = after.partition("#")[0].partition("?")
    parameters = {part: part.partition("=")[0] for part in query.split("&") if part}
    if any(_SIGNATURE.search(name) for name in parameters.values()):
        parameters = {}
    kept = "&".join(part for part, name in parameters.items() if not _ACCESS.search(name))
    return f"{scheme}://{host.rpartition('@')[2]}{path}{'?' if kept else ''}{kept}"


def _split_host(rest: str) -> tuple[str, str]:
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    return host, rest[len(host) :]


def _without_query(text: str) -> str:
    return re.split(r"[?#]", text, maxsplit=1)[0]
