"""The closed set of error kinds. Layers raise kinds; faces (CLI, daemon) write sentences and pick codes.

Knows nothing of any face: no exit code, HTTP status or gRPC code is named here.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["Kind", "WherryError"]


class Kind(str, Enum):
    """What went wrong, in the coarsest terms that a caller can act on."""

    INVALID = "invalid"  # the request can never be right
    NOT_FOUND = "not_found"
    EXISTS = "exists"
    CONFLICT = "conflict"  # true now, may change: wrong state, in use
    PRECONDITION = "precondition"  # the host or the object lacks what the request needs
    DENIED = "denied"
    UNAVAILABLE = "unavailable"  # a peer (registry, plugin) does not answer: try later
    EXHAUSTED = "exhausted"  # disk, addresses, descriptors
    UNSUPPORTED = "unsupported"  # this kernel or this build cannot
    INTERNAL = "internal"  # a bug of ours


class WherryError(Exception):
    """One failure: what failed (on what, why) and, where there is something to do, a hint.

    `message` is one sentence without a full stop; `hint` says what the user can do. `code` is the exit status that the
    container's command deserves where the failure is its own (126, 127), else None.
    """

    def __init__(self, kind: Kind, message: str, *, hint: str = "", code: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return self.message
