"""Addresses of servers, and the proxies that gRPC would take to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from serving.client.answers import ServingError
from serving.targets import is_loopback, proxy_variable

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")
HINT = "gRPC went through a proxy, since the environment has `http_proxy`: "


@pytest.fixture(autouse=True)
def proxy(monkeypatch: pytest.MonkeyPatch, free_target: str) -> None:
    """A proxy that answers nothing, for every address."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://{free_target}")


def test_loopback_needs_no_proxy(fake: Any, ask: Callable[..., Any]) -> None:
    port = fake.address.rpartition(":")[2]
    request = {"candidates": {"item_id": [5]}, "history": {"item_id": [7]}}
    for target in (f"127.0.0.1:{port}", f"localhost:{port}", f"dns:///localhost:{port}", f"ipv4:127.0.0.1:{port}"):
        assert ask(target, "rank", request, max_attempts=1).probability.tolist() == [1_005.0]


def test_unavailable_behind_a_proxy_says_so(ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServingError) as refused:
        ask("192.0.2.1:8500", "status", max_attempts=1)
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    assert HINT + "to reach the server without, add its host to `no_proxy`." in str(refused.value)
    monkeypatch.delenv("http_proxy")
    assert "proxy" not in str(ServingError("192.0.2.1:8500", "eta", grpc.StatusCode.UNAVAILABLE, ""))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("127.0.0.1:8500", True),
        ("127.8.9.1:8500", True),
        ("localhost:8500", True),
        ("LocalHost", True),
        ("eta.localhost:1", True),
        ("[::1]:8500", True),
        ("ipv6:[::1]:8500", True),
        ("::1", True),
        ("dns:localhost:8500", True),
        ("dns://8.8.8.8/localhost:8500", True),
        ("0.0.0.0:8500", False),
        ("10.0.0.127:8500", False),
        ("localhost.example.com:8500", False),
        ("dns:///example.com:8500", False),
        ("eta.default.svc.cluster.local:8500", False),
        ("[fe80::1%eth0]:8500", False),
    ],
)
def test_is_loopback(target: str, expected: bool) -> None:
    assert is_loopback(target) is expected


@pytest.mark.parametrize(
    ("environment", "target", "expected"),
    [
        ({}, "eta.example.com:8500", "http_proxy"),
        ({}, "localhost:8500", None),
        ({"https_proxy": "http://p:1"}, "eta.example.com:8500", "https_proxy"),
        ({"https_proxy": "http://p:1", "grpc_proxy": "http://p:1"}, "eta.example.com:8500", "grpc_proxy"),
        ({"no_proxy": "other.org, example.com"}, "eta.example.com:8500", None),
        ({"no_proxy": "other.org,"}, "eta.example.com:8500", "http_proxy"),
        ({"no_proxy": "example.com", "no_grpc_proxy": "other.org"}, "eta.example.com:8500", "http_proxy"),
    ],
)
def test_proxy_variable(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], target: str, expected: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_variable(target) == expected
