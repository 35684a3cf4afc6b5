"""Addresses of data sets and stores: what of them may be shown or written, and what names the content behind them.

An address can hold a password or a token. Imports nothing, leaves nothing behind.
"""

from __future__ import annotations

import re

#: Parameters of a query that grant access. One that signs the address says that all others belong to the signature.
_ACCESS = re.compile(r"(?i)token|secret|passw|credential|session|(api|access)[-_]?key|^auth(orization)?\Z")
_SIGNATURE = re.compile(r"(?i)(^|-)sig(nature)?\Z")


def shown(address: str) -> str:
    """An address without user, password, query and fragment; a path as it is.

    In one that is not well-formed, such as `https://user:pa/ss@host/`, all that may be a password is left out.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    host, after = _parts(rest)
    password = ":" in host.partition("@")[0]
    if "@" in _without_query(after):
        unsure = password or scheme.startswith(("http", "ftp"))  # in a store @ is a letter of names like any other
    else:
        unsure = password and "@" in after and "@" not in host
    if unsure:
        return f"{scheme}://…@{_without_query(rest.rpartition('@')[2])}"
    return f"{scheme}://{host.rpartition('@')[2]}{_without_query(after)}"


def within(text: str) -> str:
    """A text, such as a library's message, in which every address is shown without its secrets."""
    return re.sub(r"[A-Za-z][\w+.-]{0,30}://[^\s\"]+", lambda found: shown(found[0]), text)  # bounded: linear in time


def identity(address: str) -> str:
    """What names the content at an address: the address without user, password, fragment, and what grants access."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    host, after = _parts(rest)
    path, _, query = after.partition("#")[0].partition("?")
    parameters = {part: part.partition("=")[0] for part in query.split("&") if part}
    if any(_SIGNATURE.search(name) for name in parameters.values()):
        parameters = {}
    kept = "&".join(part for part, name in parameters.items() if not _ACCESS.search(name))
    return f"{scheme}://{host.rpartition('@')[2]}{path}{'?' if kept else ''}{kept}"


def _parts(rest: str) -> tuple[str, str]:
    """What comes before the first `/`, `?` or `#` of an address without its scheme, and the rest."""
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    return host, rest[len(host) :]


def _without_query(text: str) -> str:
    return re.split(r"[?#]", text, maxsplit=1)[0]
