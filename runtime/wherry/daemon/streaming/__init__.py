"""The CRI's streaming server: exec, attach and port-forward for clients that speak SPDY/3.1 or WebSocket.

`server.Streaming` is the server, `frames.Frames` a process for an event loop.
"""
