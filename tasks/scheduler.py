"""Chooses a command's scheduler, and says in one line why it is unreachable; Luigi shows a traceback after a minute."""

from __future__ import annotations

import json
import urllib.parse

import requests
import requests.exceptions
import requests.utils
from luigi.cmdline_parser import CmdlineParser
from luigi.configuration import get_config
from luigi.interface import core
from luigi.rpc import RemoteScheduler

from pipeline.address import shown as without_secrets
from tasks.exit_codes import is_command

#: Connect and read timeout, in seconds.
TIMEOUTS = (5.0, 20.0)

_local: bool | None = None


def problem(client: RemoteScheduler) -> str | None:
    """Why this client cannot reach luigid, in one line; None if it can."""
    url = client._url
    invalid = f"invalid scheduler address {shown(url)}: expected e.g. http://localhost:8082"
    try:
        requests.Request("POST", url).prepare()
    except ValueError:  # the base class of MissingSchema and InvalidURL
        return invalid
    try:
        page = client._fetcher.fetch(f"{url}/api/is_pause_enabled", {"data": "{}"}, TIMEOUTS)
        json.loads(page)["response"]["enabled"]
    except requests.exceptions.InvalidSchema as error:
        if "SOCKS" in str(error):
            return f"{_proxy(url)} is a SOCKS proxy: pip install 'requests[socks]', or add the host to NO_PROXY"
        return invalid
    except requests.exceptions.ProxyError:
        return f"{_proxy(url)} does not allow access to {shown(url)}: fix it, or add the host to NO_PROXY"
    except (requests.exceptions.SSLError, requests.exceptions.HTTPError, ValueError, LookupError, TypeError) as error:
        through = f", through {proxy}" if (proxy := _proxy(url)) else ""
        advice = "correct --scheduler-url or [core] in luigi.cfg, or add --local-scheduler"
        return f"{shown(url)} is not luigid ({reason(error)}{through}): {advice}"
    except requests.exceptions.RequestException:
        return f"no luigid is running at {shown(url)}: start one with luigid, or add --local-scheduler"
    except OSError as error:  # e.g. a missing file in REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE
        return f"{shown(url)} cannot be reached: {reason(error)}; check REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE"
    return None


def skip_scheduler(family: str) -> None:
    """Use the local scheduler if `family` is the task on the command line: it only reads or moves files."""
    global _local
    parser = CmdlineParser.get_instance()
    if is_command() and parser is not None and parser.known_args.root_task == family:
        if _local is None:
            _local = core().local_scheduler
        get_config().set("core", "local_scheduler", "true")


def scheduler_skipped() -> bool:
    """Whether `skip_scheduler` took effect."""
    return _local is not None


def address() -> str | None:
    """URL of the configured luigid, regardless of `skip_scheduler`; None with `--local-scheduler`."""
    settings = core()  # command line, luigi.cfg, defaults
    if settings.local_scheduler if _local is None else _local:
        return None
    return settings.scheduler_url or f"http://{settings.scheduler_host}:{settings.scheduler_port}"


def shown(url: str) -> str:
    """The address of luigid or a proxy, without secrets."""
    return without_secrets(url).rstrip("/")


def reason(error: BaseException | None) -> str:
    """Why a request to luigid failed, in a few words. Leaves out the address, which may contain a password."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code} {response.reason or ''}".rstrip()
    if isinstance(error, requests.exceptions.SSLError):
        return "TLS failed: check the certificate"
    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ConnectionError):
        return "no connection"
    if error is None or isinstance(error, (ValueError, LookupError, TypeError)):
        return "unexpected answer"
    return str(error) or type(error).__name__


def _proxy(url: str) -> str:
    """The proxy for `url`, as `the proxy <address>`; empty if there is none."""
    proxies = requests.utils.get_environ_proxies(url)
    proxy = proxies.get(urllib.parse.urlsplit(url).scheme) or proxies.get("all")
    return f"the proxy {shown(proxy if '://' in proxy else f'http://{proxy}')}" if proxy else ""
