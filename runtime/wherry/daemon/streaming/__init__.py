"""The CRI's streaming server: exec, attach and port-forward for clients that speak SPDY/3.1 or WebSocket."""

from .frames import Frames
from .server import Streaming

__all__ = ["Frames", "Streaming"]
