"""wherry's public Python API: `Engine`, `Place`, `RunOptions`, `WherryError`.

Loaded name by name, so that importing one room does not load the house.
"""

from __future__ import annotations

__all__ = ["Engine", "Place", "RunOptions", "WherryError"]
__version__ = "0.1.0"

_WHERE = {
    "Engine": "wherry.engine.engine",
    "Place": "wherry.model",
    "RunOptions": "wherry.model",
    "WherryError": "wherry.errors",
}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'wherry' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
