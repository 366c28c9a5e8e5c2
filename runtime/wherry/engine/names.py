"""Names and ids of containers: minted, checked. Knows no database; uniqueness is the database's."""

from __future__ import annotations

import os

from wherry.errors import Kind, WherryError

__all__ = ["automatic", "check", "mint"]

_LEFT = (  # noqa: SIM905  # a list of words reads better as words
    "able amber brave breezy bright brisk calm candid clever coastal cosy crisp deft eager early earnest fair faithful "
    "fond frank gallant gentle glad golden handy happy hardy hearty honest humble jolly keen kind lively loyal lucid "
    "mellow merry mild modest neat nimble noble patient placid plucky polite proud prudent quick quiet ready robust "
    "sandy serene sharp silent silver sleek smart snug sober steady stout sunny sure swift tender tidal tidy trim true "
    "trusty upbeat vivid warm wily windy wise witty zesty"
).split()
_RIGHT = (  # noqa: SIM905
    "anchor barge beacon bosun bowline brig bridge buoy canal capstan cargo channel clipper coble compass coracle cove "
    "current cutter davit deck delta dinghy dock dory ebb estuary ferry fjord fleet galley gig gull harbour haven "
    "heron helm hull inlet isle jetty keel kelp ketch lagoon lantern launch ledger lighter lock lugger mast mooring "
    "oar osprey otter paddle pier pilot pinnace plover prow punt quay rapids reach reef rigging rowlock rudder sail "
    "schooner scull shoal skerry skiff sloop spar spindrift stern strand tide tiller towpath trawler tug wharf winch "
    "yawl"
).split()
_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_REST = _FIRST | frozenset("_.-")


def mint() -> str:
    """Return a new id: 64 hex digits. The first twelve are not all decimal, for they become a hostname."""
    while True:
        value = os.urandom(32).hex()
        if not value[:12].isdigit():
            return value


def automatic() -> str:
    """Return a name of an adjective and a noun; it may be taken."""
    one, two, three, four = os.urandom(4)
    return f"{_LEFT[(one << 8 | two) % len(_LEFT)]}_{_RIGHT[(three << 8 | four) % len(_RIGHT)]}"


def check(name: str, what: str = "container") -> str:
    """Return the name without docker's leading slash, or refuse it."""
    name = name.removeprefix("/")
    if len(name) < 2 or len(name) > 128 or name[0] not in _FIRST or not _REST.issuperset(name):
        hint = "names are 2 to 128 of [a-zA-Z0-9_.-] and begin with a letter or a digit"
        raise WherryError(Kind.INVALID, f'invalid {what} name "{name}"', hint=hint)
    return name
