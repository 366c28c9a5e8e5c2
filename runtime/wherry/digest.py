"""Digests of small texts without OpenSSL: `hashlib` loads its library, 5 ms that every start would pay.

Decides only where the function comes from. For what is large use `hashlib`, which is many times faster there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        from _sha2 import sha256  # Python 3.12 and newer
    except ImportError:
        try:
            from _sha256 import sha256
        except ImportError:  # an interpreter built without its own
            from hashlib import sha256

__all__ = ["hexdigest", "sha256"]


def hexdigest(algorithm: str, data: bytes) -> str:
    """The digest in hex by any algorithm of `hashlib`."""
    if algorithm == "sha256":
        return sha256(data).hexdigest()
    import hashlib

    return hashlib.new(algorithm, data).hexdigest()
