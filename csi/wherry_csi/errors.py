"""The driver's one error: a gRPC status by its name and a sentence. Which code which case has is the spec's to say."""

from __future__ import annotations

__all__ = ["CsiError"]


class CsiError(Exception):
    """What the caller is told: `code` is a name of grpc.StatusCode ("NOT_FOUND"), the message a sentence that says what
    failed, on what, and what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
