"""Addresses of servers, and the proxies that gRPC would use to reach them."""

from __future__ import annotations

import ipaddress
import os
import re

# As gRPC's http_proxy_mapper reads them, in its order.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")


def is_loopback(target: str) -> bool:
    """Whether a gRPC target is this machine itself, which no proxy can reach."""
    host = _host(target)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_option(target: str) -> tuple[str, int]:
    """The channel option that keeps gRPC from using a proxy to reach this machine itself."""
    return "grpc.enable_http_proxy", int(not is_loopback(target))


def proxy_variable(target: str) -> str | None:
    """The environment variable that makes gRPC use a proxy to reach the target, if there is one."""
    exceptions = next(filter(None, map(os.environ.get, _EXCEPTIONS)), "")
    host = _host(target)
    if is_loopback(target) or any(host.endswith(entry.strip()) for entry in exceptions.split(",") if entry.strip()):
        return None
    return next((name for name in _PROXIES if os.environ.get(name)), None)


def _host(target: str) -> str:
    """The host of `host:port`, `[::1]:port` and of both behind a scheme: `dns:///host:port`, `ipv4:host:port`."""
    address = re.sub(r"^(dns:(//[^/]*/)?|ipv[46]:)", "", target)
    bracketed = re.match(r"\[(.*)\]", address)
    if bracketed:
        return bracketed[1].partition("%")[0]
    return address.rpartition(":")[0].lower() if address.count(":") == 1 else address.lower()
