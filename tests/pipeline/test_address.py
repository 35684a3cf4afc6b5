"""Addresses without their secrets, and the identity of what is behind them."""

from __future__ import annotations

import pytest

from pipeline import address
from pipeline.errors import ConfigError
from pipeline.storage import check_url


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://host/mini.tar.gz", "https://host/mini.tar.gz"),
        ("https://me:hush@host:8080/mini.tar.gz?token=hush", "https://host:8080/mini.tar.gz"),
        ("https://hush@host/x#access_token=hush", "https://host/x"),
        ("https://host?token=hush", "https://host"),
        ("https://me:hush@host?mail=me@hush.org", "https://host"),
        ("https://me:hu/sh@host/x", "https://…@host/x"),
        ("https://me:h@hush/hush@host/x", "https://…@host/x"),
        ("https://me:hu?sh@host/x", "https://…@host/x"),
        ("https://me:hu#sh@host/x?token=hush", "https://…@host/x"),
        ("https://host/x?mail=me@hush.org", "https://host/x"),
        ("s3://key:hush@bucket/x", "s3://bucket/x"),
        ("s3://bucket/me@home/x", "s3://bucket/me@home/x"),
        ("sftp://me:hu/sh@host/x", "sftp://…@host/x"),
        ("https://hu/sh@host/x", "https://…@host/x"),
        ("/data/me@home?/mini.tar.gz", "/data/me@home?/mini.tar.gz"),
    ],
)
def test_an_address_is_shown_without_whatever_may_be_secret(given, shown):
    assert address.shown(given) == shown


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://me:old@host/x", "https://me:new@host/x"),
        ("https://host/x?id=1&access_token=old", "https://host/x?id=1&access_token=new"),
        ("https://host/x#access_token=old", "https://host/x"),
        ("https://host/x?X-Amz-Date=1&X-Amz-Signature=old", "https://host/x?X-Amz-Date=2&X-Amz-Signature=new"),
        ("https://host/x?sv=1&se=2026&sig=old", "https://host/x?sv=1&se=2027&sig=new"),
    ],
)
def test_a_changed_secret_is_the_same_content(one, other):
    assert address.identity(one) == address.identity(other)


@pytest.mark.parametrize("other", ["https://host/x?id=2", "https://host/y?id=1", "https://hosts/x?id=1", "/x?id=1"])
def test_a_different_file_is_different_content(other):
    assert address.identity(other) != address.identity("https://host/x?id=1")


@pytest.mark.parametrize("plain", ["https://host/x", "https://host/x?id=1&v=2", "file:///x", "/data/a#b", "bundled"])
def test_an_address_without_secrets_is_its_own_identity(plain):
    # A different value would make every existing data set unknown.
    assert address.identity(plain) == plain


@pytest.mark.parametrize("given", ["sftp://me:hush@host/x", "sftp://me:hu/sh@host/x", "s3://bucket/x?token=hush"])
def test_a_workspace_s_address_with_a_secret_is_refused_without_showing_it(given):
    with pytest.raises(ConfigError, match="would end up in logs") as caught:
        check_url(given)
    assert "hu" not in str(caught.value).partition(": an address")[0]
