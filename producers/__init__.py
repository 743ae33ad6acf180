"""Requests in: the client, its asyncio twin and the command line. `from producers import Client`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from producers.aio import AsyncClient
    from producers.client import Client
    from producers.handle import JobHandle
    from producers.request import Request

__all__ = ["AsyncClient", "Client", "JobHandle", "Request"]

_HOMES = {
    "AsyncClient": "producers.aio",
    "Client": "producers.client",
    "JobHandle": "producers.handle",
    "Request": "producers.request",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: `tape --help` passes through this package and must not wait for pydantic and Kafka.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
