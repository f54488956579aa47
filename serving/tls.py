"""Flags for TLS, and mutual TLS, to a server."""

from __future__ import annotations

import argparse
from pathlib import Path

import grpc


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--tls_ca`, `--tls_cert` and `--tls_key`."""
    parser.add_argument("--tls_ca", metavar="FILE", help="TLS: PEM of the authorities that may vouch for the server")
    parser.add_argument("--tls_cert", metavar="FILE", help="mutual TLS: PEM of the certificate to show, with --tls_key")
    parser.add_argument("--tls_key", metavar="FILE", help="mutual TLS: PEM of its private key")


def check_flags(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    """Ends the process with a usage error if a certificate comes without its key, or a key without its certificate."""
    if bool(flags.tls_cert) != bool(flags.tls_key):
        parser.error("--tls_cert and --tls_key go together.")


def credentials(flags: argparse.Namespace) -> grpc.ChannelCredentials | None:
    """The credentials that the flags ask for; `None` for plaintext.

    Raises:
        ValueError: if a file is not PEM.
        OSError: if a file can't be read.
    """
    pems = []
    for flag in ("tls_ca", "tls_key", "tls_cert"):
        path = getattr(flags, flag)
        pem = Path(path).read_bytes() if path else None
        # gRPC would only say that it can't connect.
        if pem is not None and b"-----BEGIN " not in pem:
            raise ValueError(f"--{flag} must be a PEM file. Received: {path}")
        pems.append(pem)
    return grpc.ssl_channel_credentials(*pems) if any(pems) else None
