"""Fixtures for the tests of single modules of `pipeline`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.config import Architecture, from_dict


@pytest.fixture
def small_architecture() -> Callable[..., Architecture]:
    """A validated architecture from a few keys: `small_architecture(conv_arch=[[1, 4]], batch_norm=True, dense=[])`."""

    def make(**keys: Any) -> Architecture:
        return from_dict({"architecture": {"name": "tiny", **keys}, "training": {"epochs": 1}}).architecture

    return make
