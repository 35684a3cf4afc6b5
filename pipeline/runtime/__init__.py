"""MXNet, imported and checked: devices, precisions, versions. Other packages get `mx` only from here."""

from pipeline.runtime.cpu import amx_in_use, cpu_flags, cpu_has_bfloat16, cpu_name
from pipeline.runtime.device import Devices, devices, resolve_precision
from pipeline.runtime.importing import (
    adapt_to_load,
    check_python,
    installed_mxnets,
    mxnet,
    native_library,
    plain_operator,
    versions,
)

__all__ = [
    "Devices",
    "adapt_to_load",
    "amx_in_use",
    "check_python",
    "cpu_flags",
    "cpu_has_bfloat16",
    "cpu_name",
    "devices",
    "installed_mxnets",
    "mxnet",
    "native_library",
    "plain_operator",
    "resolve_precision",
    "versions",
]
