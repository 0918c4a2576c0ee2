"""Which texts hold a secret, what is shown of an address, and calls that end in time."""

import time

import pytest

from benchmark.io import network

SECRET = [
    "https://me:planted@server",
    "HTTPS://planted@server/path",
    "postgresql://me:pla/nted@host:5432/db",
    "https://server/?token=planted",
    "s3://bucket/folder?a=1&X-Amz-Signature=planted",
    "data.path=https://server/x?api_key=planted",
    "https://server/#access_token=planted",
]
PLAIN = [
    "/shared/store",
    "http://mlflow:5000/path",
    "https://server/a@b",
    "s3://bucket/folder",
    "abfs://container@account.dfs.core.windows.net/folder",
    "sftp://me@host/folder",
    "https://server/?page=2",
    "seed=1",
]


@pytest.mark.parametrize("text", SECRET)
def test_a_secret_is_found(text: str) -> None:
    assert network.holds_secret(text)
    assert network.holds_secret(f"see {text} there")


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_passes(text: str) -> None:
    assert not network.holds_secret(text)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://host:8265/prefix", "http://host:8265/prefix"),
        ("http://me:planted@host:8265", "http://***@host:8265"),
        ("me:plan@ted@host", "***@host"),
        ("http://host?token=planted", "http://host?***"),
        ("http://me:pla/nt\ned@host/#planted", "http://***@host/#***"),
    ],
)
def test_an_address_is_shown_without_its_secrets(address: str, shown: str) -> None:
    assert network.without_secrets(address) == shown


def test_a_call_that_does_not_return_is_left() -> None:
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        network.within(0.1, lambda: time.sleep(5))
    assert time.monotonic() - begin < 4
    assert network.within(60, lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        network.within(60, lambda: 1 // 0)


@pytest.mark.parametrize("host", ["", "a b", "ü" * 70, "a\0b", "\udc80", "." * 300])
def test_a_name_that_no_host_can_have_is_unreachable(host: str) -> None:
    assert network.unreachable(host, 1)


def test_a_port_that_none_can_be_is_unreachable() -> None:
    assert network.unreachable("127.0.0.1", 2**40)
