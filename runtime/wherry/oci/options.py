"""Mount options as tables: runtime-spec 1.3 ("Linux mount options", the mount(8) words) to the kernel's attributes.

Decides what each word means; refuses to know paths and what a filesystem makes of its own options.
"""

from typing import Final, NamedTuple

from wherry.errors import Kind, WherryError

__all__ = [
    "IDMAP",
    "KNOWN",
    "MS_REC",
    "NODEV",
    "NOEXEC",
    "NOSUID",
    "NOSYMFOLLOW",
    "PROPAGATION",
    "RDONLY",
    "MountOptions",
    "parse",
]

# MOUNT_ATTR_* (linux/mount.h)
RDONLY, NOSUID, NODEV, NOEXEC = 0x1, 0x2, 0x4, 0x8
ATIME_MASK, RELATIME, NOATIME, STRICTATIME = 0x70, 0x00, 0x10, 0x20
NODIRATIME, IDMAP, NOSYMFOLLOW = 0x80, 0x100000, 0x200000

# MS_* (linux/mount.h)
MS_REC, MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x4000, 1 << 17, 1 << 18, 1 << 19, 1 << 20

PROPAGATION: Final[dict[str, int]] = {
    "unbindable": MS_UNBINDABLE,
    "private": MS_PRIVATE,
    "slave": MS_SLAVE,
    "shared": MS_SHARED,
    "runbindable": MS_UNBINDABLE | MS_REC,
    "rprivate": MS_PRIVATE | MS_REC,
    "rslave": MS_SLAVE | MS_REC,
    "rshared": MS_SHARED | MS_REC,
}

#: word -> (attributes to set, attributes to clear). Setting an atime mode must clear the whole field first
ATTRIBUTES: Final[dict[str, tuple[int, int]]] = {
    "ro": (RDONLY, 0),
    "rw": (0, RDONLY),
    "nosuid": (NOSUID, 0),
    "suid": (0, NOSUID),
    "nodev": (NODEV, 0),
    "dev": (0, NODEV),
    "noexec": (NOEXEC, 0),
    "exec": (0, NOEXEC),
    "nodiratime": (NODIRATIME, 0),
    "diratime": (0, NODIRATIME),
    "relatime": (RELATIME, ATIME_MASK),
    "norelatime": (RELATIME, ATIME_MASK),
    "noatime": (NOATIME, ATIME_MASK),
    "atime": (RELATIME, ATIME_MASK),
    "strictatime": (STRICTATIME, ATIME_MASK),
    "nostrictatime": (RELATIME, ATIME_MASK),
    "nosymfollow": (NOSYMFOLLOW, 0),
    "symfollow": (0, NOSYMFOLLOW),
}

#: the same with "r" in front, for the whole tree (runtime-spec: rro, rnosuid ...)
RECURSIVE: Final[dict[str, tuple[int, int]]] = {f"r{word}": bits for word, bits in ATTRIBUTES.items()}

#: superblock flags: words that fsconfig takes for any filesystem; on a bind mount they mean nothing
SUPERBLOCK: Final[frozenset[str]] = frozenset(
    {
        "sync",
        "async",
        "dirsync",
        "mand",
        "nomand",
        "lazytime",
        "nolazytime",
        "iversion",
        "noiversion",
        "silent",
        "loud",
        "acl",
        "noacl",
    }
)
#: of those, the ones that the kernel's new mount API knows as parameters (fs/fs_context.c); the rest have no effect
#: there
PARAMETERS: Final[frozenset[str]] = frozenset({"sync", "async", "dirsync", "mand", "nomand", "lazytime", "nolazytime"})
IGNORED: Final[frozenset[str]] = frozenset({"defaults", "auto", "noauto", "user", "nouser", "nofail", "_netdev"})
UNSUPPORTED: Final[frozenset[str]] = frozenset({"copy-symlink", "move"})


class MountOptions(NamedTuple):
    """The options of one mount, sorted by what carries them out."""

    bind: bool = False
    remount: bool = False
    recursive: bool = False  # rbind
    attr_set: int = 0
    attr_clr: int = 0
    tree_set: int = 0  # for the whole tree
    tree_clr: int = 0
    propagation: tuple[int, ...] = ()  # MS_*, in the order given
    idmap: bool = False
    ridmap: bool = False
    copy_up: bool = False
    source_nofollow: bool = False
    target_nofollow: bool = False
    data: tuple[str, ...] = ()  # what the filesystem itself reads

    @property
    def shared(self) -> bool:
        """Some propagation given makes the mount a peer of its source."""
        return any(value & MS_SHARED for value in self.propagation)


def parse(options: list[str] | tuple[str, ...], where: str = "mount") -> MountOptions:
    """Sort `options`; the last word of a contradicting pair wins, as with mount(8)."""
    words = [word for word in options if word and word not in IGNORED and not word.lower().startswith("x-")]
    refused = sorted(UNSUPPORTED.intersection(words))
    if refused:
        raise WherryError(Kind.UNSUPPORTED, f'{where}: mount option "{refused[0]}" is not supported')
    attr_set, attr_clr = _bits(words, ATTRIBUTES)
    tree_set, tree_clr = _bits(words, RECURSIVE)
    given = set(words)
    return MountOptions(
        bind=bool(given & {"bind", "rbind"}) and "remount" not in given,
        remount="remount" in given,
        recursive="rbind" in given,
        attr_set=attr_set,
        attr_clr=attr_clr,
        tree_set=tree_set,
        tree_clr=tree_clr,
        propagation=tuple(PROPAGATION[word] for word in words if word in PROPAGATION),
        idmap=bool(given & {"idmap", "ridmap"}),
        ridmap="ridmap" in given,
        copy_up="tmpcopyup" in given,
        source_nofollow="src-nofollow" in given,
        target_nofollow="dest-nofollow" in given,
        data=tuple(word for word in words if _is_data(word)),
    )


_VERBS = frozenset({"bind", "rbind", "remount", "idmap", "ridmap", "tmpcopyup", "src-nofollow", "dest-nofollow"})
#: every word that has a meaning of its own, whatever the filesystem
KNOWN: Final = frozenset({*_VERBS, *ATTRIBUTES, *RECURSIVE, *PROPAGATION, *SUPERBLOCK, *IGNORED})


def _is_data(word: str) -> bool:
    return word not in KNOWN or word in PARAMETERS


def _bits(words: list[str], table: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """(set, clear) after all `words`: a later word undoes an earlier one on the bits that both touch."""
    to_set = to_clear = 0
    for set_bits, clear_bits in (table[word] for word in words if word in table):
        to_set = to_set & ~clear_bits | set_bits
        to_clear = to_clear & ~(set_bits & ~ATIME_MASK) | clear_bits
    return to_set, to_clear
