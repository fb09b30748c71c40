"""The OpenAI-compatible HTTP server. It knows the engine only as an `EngineClient`."""

from ghostserve.server.app import create_app
from ghostserve.server.descriptors import ensure_descriptors
from ghostserve.server.engine_client import (
    EngineClient,
    EngineStatus,
    RankStatus,
    RecoveryRecord,
    StandbyStatus,
)
from ghostserve.server.gate import ApiKeys
from ghostserve.server.run import bind, serve
from ghostserve.server.settings import ServerSettings

__all__ = [
    "ApiKeys",
    "EngineClient",
    "EngineStatus",
    "RankStatus",
    "RecoveryRecord",
    "ServerSettings",
    "StandbyStatus",
    "bind",
    "create_app",
    "ensure_descriptors",
    "serve",
]
