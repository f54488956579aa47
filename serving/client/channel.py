"""How the clients' gRPC channels retry calls, watch connections and bound messages."""

from __future__ import annotations

import json
from typing import Any

from serving.targets import proxy_option

# gRPC's own limit.
MAX_ATTEMPTS = 5

_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # gRPC does not try again what does not fit in here, and by default that is 256 KiB.
    ("grpc.per_rpc_retry_buffer_size", 1 << 30),
    # Finds a dead peer under a call: by a ping, and on Linux sooner, when data stay unacknowledged for the timeout. An
    # idle connection is not pinged, which servers take for an attack, but let go before a firewall forgets it.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # 60 s by default, whatever the line above says.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.client_idle_timeout_ms", 180_000),
    # gRPC would wait up to two minutes before it looks for a server again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
# gRPC adds the jitter.
_RETRY_POLICY = {
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def channel_options(target: str, max_attempts: int) -> list[tuple[str, Any]]:
    """Options of the channel to a server, whose calls gRPC tries up to `max_attempts` times."""
    # A proxy's own loopback is another machine's.
    options = [*_CHANNEL_OPTIONS, proxy_option(target)]
    if max_attempts == 1:
        return [*options, ("grpc.enable_retries", 0)]
    # An empty name: for every method.
    method = {"name": [{}], "retryPolicy": {"maxAttempts": max_attempts, **_RETRY_POLICY}}
    return [
        *options,
        ("grpc.enable_retries", 1),
        ("grpc.service_config", json.dumps({"methodConfig": [method]})),
    ]
