"""CNI error objects (specification 1.1.0, section 5). Codes below 100 are the specification's, the rest are ours."""

from __future__ import annotations

__all__ = ["AGAIN", "BAD_CONFIG", "BAD_ENV", "EXHAUSTED", "FIREWALL", "INCOMPATIBLE", "INTERNAL", "IO", "KERNEL",
           "NOT_AVAILABLE", "PORT_TAKEN", "UNDECODABLE", "UNKNOWN_CONTAINER", "UNSUPPORTED", "CniError"]

INCOMPATIBLE, UNSUPPORTED, UNKNOWN_CONTAINER, BAD_ENV, IO, UNDECODABLE, BAD_CONFIG = 1, 2, 3, 4, 5, 6, 7
AGAIN, NOT_AVAILABLE, EXHAUSTED = 11, 50, 51
KERNEL, FIREWALL, PORT_TAKEN, INTERNAL = 100, 101, 120, 199


class CniError(Exception):
    """One failure of a plugin: a code, one sentence, and details where there are some."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details
