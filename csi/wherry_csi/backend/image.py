"""Volumes as image files: a sparse file on a loop device, with a file system of its own, or raw for block volumes.

Its size is true by construction. Decides the file's name, how its bytes come to rest before they are copied, and that a
mounted image is seen through mounts of its device, found by the file: never by a path, for which others may have
mounted something else. Refuses to know records, capacity and where mounts are published.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from wherry_csi import extents, kernel, loop, mkfs, mounts, thaw, tree
from wherry_csi.errors import CsiError

from . import Extent, PoolFacts, Shape, Usage

__all__ = ["Image"]

_NAME = "image"
_TRIES = 3  # copies of a block volume in use until one was not written to meanwhile
#: what a mount says of a file system that is no longer one
_DAMAGED = {errno.EUCLEAN, errno.EBADMSG, errno.EINVAL, errno.EIO, errno.ENODATA}
#: options that would open what is not the volume's, or stop the node
_FORBIDDEN = ("logdev", "rtdev", "journal_dev", "journal_path", "errors=panic")
_EXT4_ERRORS = 2  # s_state: EXT4_ERROR_FS


@contextmanager
def _opened(home: int, flags: int = os.O_RDWR) -> Iterator[int]:
    """The image file of a home; what is no regular file is none (ENOENT), and a FIFO holds nobody up."""
    try:
        fd = os.open(_NAME, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=home)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        raise FileNotFoundError(errno.ENOENT, "the volume's image is no regular file", _NAME) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileNotFoundError(errno.ENOENT, "the volume's image is no regular file", _NAME)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _created(home: int) -> Iterator[int]:
    """A new image file, never one that had other bytes before."""
    tree.remove(_NAME, home)
    with _opened(home, os.O_RDWR | os.O_CREAT | os.O_EXCL) as image:
        extents.gather(image)
        yield image


def _sized(image: int, size: int, thick: bool) -> None:
    """Make the file `size` bytes; what fails leaves it as long as it was. All its own at once if `thick`."""
    before = os.fstat(image).st_size
    os.ftruncate(image, size)
    if thick:
        try:
            _allocated(image, size)
        except OSError:
            os.ftruncate(image, before)
            raise


def _allocated(image: int, size: int) -> None:
    """Allocated bytes read as zeros; shared ones become its own where the file system can do that."""
    try:
        kernel.unshare(image, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.posix_fallocate(image, 0, size)


def _devices(home: int) -> list[loop.Device]:
    """The loop devices of the home's image; none if there is no image."""
    with suppress(FileNotFoundError), _opened(home, os.O_RDONLY) as image:
        return loop.find(image)
    return []


def _writable(devices: Iterable[loop.Device]) -> loop.Device | None:
    return next((device for device in devices if not device.readonly), None)


@contextmanager
def _device(image: int) -> Iterator[tuple[loop.Device, int]]:
    """The device that a mounted image has or gets: it lasts as long as the context, or a mount made in it."""
    if found := _writable(loop.find(image)):
        with loop.opened(found.number) as fd:
            yield found, fd
    else:
        device, fd = loop.attach(image, autoclear=True, block=mkfs.BLOCK)
        with ExitStack() as stack:
            stack.callback(loop.settle, image)  # at once if it is mounted now
            stack.callback(os.close, fd)
            yield device, fd


def _attached(image: int, *, readonly: bool) -> loop.Device:
    """A block volume's device, writable or not: the one that is there, or a new one."""
    if found := [device for device in loop.find(image) if device.readonly == readonly]:
        return found[0]
    device, fd = loop.attach(image, readonly=readonly)
    os.close(fd)
    return device


def _whole(image: int, shape: Shape) -> None:
    """A shorter image than promised has lost bytes: nobody shall write to what is left as if nothing were."""
    if (found := os.fstat(image).st_size) < shape.size:
        sentence = f"the volume's image has {found} bytes where {shape.size} are promised; restore a snapshot of it"
        raise CsiError("INTERNAL", sentence)


@contextmanager
def _root(device: loop.Device, fs: str) -> Iterator[int]:
    """The root of the file system on an attached device, through a mount of our own that nobody sees.

    The superblock is the one that is mounted already; if that is read-only, so must the request be (EBUSY).
    """
    options = mkfs.FILE_SYSTEMS[fs].options
    try:
        fd = mounts.new(fs, device.path, options, kernel.ATTR_NODEV)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        fd = mounts.new(fs, device.path, [*options, "ro"], kernel.ATTR_NODEV)
    try:
        with mounts.root(fd) as root:
            yield root
    finally:
        os.close(fd)


def _flush(image: int, shape: Shape) -> None:
    """What was written to the volume before this call is in its image, and that on disk."""
    if device := _writable(loop.find(image)):
        if shape.access == "mount":
            with _root(device, shape.fs) as root:
                kernel.syncfs(root)
        else:
            with loop.opened(device.number) as fd:
                os.fsync(fd)
    os.fsync(image)


def _writes(device: loop.Device) -> str:
    """Sectors written and discarded up to now (Documentation/block/stat.rst); equal texts: none in between."""
    with open(f"/sys/block/loop{device.number}/stat", encoding="ascii") as file:
        words = file.read().split()
    return f"{words[6]} {words[13]}"


@contextmanager
def _frozen(homes: Iterable[tuple[int, Shape]]) -> Iterator[None]:
    """Mounted ones frozen, for as long as the context lasts. A block volume cannot be: if one was written to, the
    context ends with ABORTED."""
    with ExitStack() as stack:
        roots, raw = [], []
        for image, shape in homes:
            device = _writable(loop.find(image))
            if device and shape.access == "mount":
                roots.append(stack.enter_context(_root(device, shape.fs)))
            elif device:
                raw.append((device, stack.enter_context(loop.opened(device.number))))
        stack.enter_context(thaw.frozen(roots))
        for _, fd in raw:
            os.fsync(fd)
        before = [_writes(device) for device, _ in raw]
        yield
        for _, fd in raw:
            os.fsync(fd)  # what sat in its page cache counts as written
        if before != [_writes(device) for device, _ in raw]:
            raise CsiError("ABORTED", "a block volume was written to while it was copied; stop its user or try again")


def _copied(image: int, copy: int, shape: Shape) -> None:
    """The data of a volume that nobody writes to meanwhile, read and written."""
    for left in reversed(range(_TRIES)):
        try:
            with _frozen([(image, shape)]):
                extents.copy(image, copy)
            return
        except CsiError:
            if not left:
                raise
            os.ftruncate(copy, 0)


def _checked(options: Iterable[str]) -> tuple[int, list[str]]:
    """Attributes of a mount, and options of its file system that may be asked."""
    bits, words = mounts.attributes(options)
    for word in words:
        if word in _FORBIDDEN or word.partition("=")[0] in _FORBIDDEN:
            sentence = f"the mount option {word.partition('=')[0]!r} reaches beyond the volume and is refused"
            raise CsiError("INVALID_ARGUMENT", sentence)
    return bits | kernel.ATTR_NODEV, words


def _discreet(text: str, words: Iterable[str]) -> str:
    """What the kernel says, with the options' names but not their values: these may be secret, errors are public."""
    for word in words:
        if value := word.partition("=")[2]:
            text = text.replace(value, "...")
    return f"{text}; options: {', '.join(word.partition('=')[0] for word in words)}"


def _mounted(fs: str, device: loop.Device, words: list[str], bits: int) -> int:
    """A detached mount of the device, asked by a CO: what fails is told in the spec's terms."""
    try:
        return mounts.new(fs, device.path, [*mkfs.FILE_SYSTEMS[fs].options, *words], bits)
    except OSError as error:
        if error.errno == errno.EINVAL and words:
            sentence = f"{fs} refuses a mount option ({_discreet(str(error.strerror), words)})"
            raise CsiError("INVALID_ARGUMENT", sentence) from None
        if error.errno in _DAMAGED:
            sentence = f"the volume's {fs} is damaged and cannot be mounted ({error.strerror}); restore a snapshot"
            raise CsiError("INTERNAL", sentence) from None
        raise


def _is_at(path: str, devices: list[loop.Device], bits: int | None = None) -> bool:
    """Whether the image is what is mounted at `path` (with these attributes); foreign mounts: FAILED_PRECONDITION."""
    found = mounts.at(path)
    if not found:
        return False
    top = found[-1]
    if top.root != "/" or top.device not in {device.id for device in devices}:
        sentence = f"{path} has a mount of {top.source} on it that is not this volume's; unmount it"
        raise CsiError("FAILED_PRECONDITION", sentence)
    if bits is not None and mounts.attributes_of(top) != bits:
        raise CsiError("ALREADY_EXISTS", f"{path} is staged with other options: {','.join(top.options)}")
    return True


def _prepared(fs: str, device: loop.Device, fd: int, words: list[str], size: int) -> int:
    """A detached mount, of a file system that fills its device; grown while unmounted if we may not online."""
    for grown in (False, True):
        mount = _mounted(fs, device, words, kernel.ATTR_NODEV)
        try:
            with mounts.root(mount) as root:
                if not grown:  # resize2fs leaves out a last group that is too small: that must not be asked for again
                    mkfs.grow(fs, root, fd, size)
                _only_if_empty(root)
            return mount
        except OSError as error:
            os.close(mount)
            if error.errno != errno.EPERM or grown:
                raise
        mkfs.grow_offline(fs, fd)
    raise AssertionError


def _impatient(device: loop.Device) -> None:
    """XFS gives up, and shuts down, when the pool's disk is dead, instead of trying for ever. Room it waits for."""
    with suppress(OSError), open(f"/sys/fs/xfs/loop{device.number}/error/metadata/EIO/max_retries", "w") as file:
        file.write("5")


def _only_if_empty(root: int) -> None:
    """mke2fs's lost+found goes while it is empty, so that a new volume is: programs refuse a directory that is not.
    e2fsck makes another when it needs one."""
    with suppress(OSError):
        os.rmdir("lost+found", dir_fd=root)


class Image:
    """A file named `image` in each home, of exactly the volume's size."""

    name = "image"
    files: tuple[str, ...] = (_NAME,)

    def problem(self, pool: PoolFacts, access: str, fs: str) -> str:
        """File systems that are not made here, and tools that are not there."""
        if access == "block":
            return ""
        if fs not in mkfs.FILE_SYSTEMS:
            return f"images have no file system {fs!r}; there are: {', '.join(mkfs.FILE_SYSTEMS)}"
        tool = mkfs.FILE_SYSTEMS[fs].command[0]
        return "" if shutil.which(tool) else f"there is no {tool} on PATH; install it (e2fsprogs, xfsprogs)"

    def fit(self, size: int, access: str, fs: str) -> int:
        """Whole blocks of 4096 bytes; ext4 begins at 16 MiB and XFS at 300 MiB, so that there is a journal."""
        least = mkfs.BLOCK if access == "block" else mkfs.FILE_SYSTEMS[fs].least
        return max(-(-size // mkfs.BLOCK) * mkfs.BLOCK, least)

    def make(self, home: int, shape: Shape) -> None:
        """All zeros, or an empty file system."""
        with _created(home) as image:
            _sized(image, shape.size, shape.thick)
            if shape.access == "mount":
                mkfs.make(shape.fs, image)
            os.fsync(image)
        os.fsync(home)

    def copy(self, source: int, old: Shape, home: int, new: Shape) -> None:
        """Flushed and cloned, without a freeze: FICLONE has the file at one instant. Else read, while it is frozen."""
        with _opened(source) as image, _created(home) as copy:
            _flush(image, old)
            if not extents.clone(image, copy):
                _copied(image, copy, old)
            _sized(copy, new.size, new.thick)
            os.fsync(copy)
        os.fsync(home)

    @contextmanager
    def quiesced(self, homes: Sequence[tuple[int, Shape]]) -> Iterator[None]:
        """All that are mounted frozen at once; a block volume that is written to meanwhile: ABORTED."""
        with ExitStack() as stack:
            images = [(stack.enter_context(_opened(home)), shape) for home, shape in homes]
            with _frozen(images):
                yield

    def grow(self, home: int, old: Shape, new: Shape) -> bool:
        """A longer file; the node has to expand what is attached."""
        with _opened(home) as image:
            _sized(image, max(os.fstat(image).st_size, new.size), new.thick)
            os.fsync(image)
            return bool(loop.find(image))

    def allocated(self, home: int, shape: Shape) -> int:
        """st_blocks."""
        return os.stat(_NAME, dir_fd=home, follow_symlinks=False).st_blocks * 512

    def stage(self, home: int, shape: Shape, path: str, options: Sequence[str]) -> None:
        """Mounted detached, grown if a smaller volume was restored or expanded, and only then seen at `path`."""
        bits, words = _checked(options)
        with _opened(home) as image:
            _whole(image, shape)
            if shape.access == "block":
                _attached(image, readonly=False)
                return
            if _is_at(path, loop.find(image), bits):
                return
            with _device(image) as (device, fd):
                size = os.fstat(image).st_size
                mount = _prepared(shape.fs, device, fd, words, size)
                try:
                    kernel.mount_setattr(mount, bits)
                    mounts.attach(mount, path)
                finally:
                    os.close(mount)
                _impatient(device)

    def expand(self, home: int, shape: Shape) -> None:
        """The devices first, then the file system on the writable one."""
        devices = _devices(home)
        for device in devices:
            loop.grow(device)
        if shape.access == "mount" and (writable := _writable(devices)):
            with loop.opened(writable.number) as fd, _root(writable, shape.fs) as root:
                _expanded(shape, root, fd)

    def source(self, home: int, shape: Shape, staged: str, readonly: bool) -> str:
        """A block volume published read-only has a read-only device of its own: a bind mount would not protect it."""
        devices = _devices(home)
        if shape.access == "mount":
            if _is_at(staged, devices):
                return staged
        elif _writable(devices):
            if not readonly:
                return devices[0].path
            with _opened(home, os.O_RDONLY) as image:
                return _attached(image, readonly=True).path
        raise CsiError("FAILED_PRECONDITION", f"the volume is not staged at {staged}; call NodeStageVolume first")

    def unstage(self, home: int, shape: Shape, path: str) -> None:
        """All mounts of it at `path`, or all devices of a block volume. Ends when its devices have gone, if they go."""
        devices = _devices(home)
        if shape.access == "block":
            for device in devices:
                loop.detach(device)
        else:
            while _is_at(path, devices):
                mounts.unmount(path)
        if devices:
            with _opened(home, os.O_RDONLY) as image:
                loop.settle(image)

    def staged(self, home: int, shape: Shape) -> bool:
        """Attached is in use: also what only a container that outlived its mount here still has."""
        return bool(_devices(home))

    def usage(self, home: int, shape: Shape) -> Usage:
        """statvfs(3) inside; a block volume, or one that is not mounted: its allocated bytes."""
        if shape.access == "mount" and (device := _writable(_devices(home))):
            with _root(device, shape.fs) as root:
                it = os.fstatvfs(root)
            used = it.f_blocks - it.f_bfree
            total, used, free = (number * it.f_frsize for number in (it.f_blocks, used, it.f_bavail))
            return Usage(total, used, free, it.f_files, it.f_files - it.f_ffree, it.f_ffree)
        used = min(self.allocated(home, shape), shape.size)
        return Usage(shape.size, used, shape.size - used)

    def recover(self, home: int, shape: Shape) -> None:
        """Thaw it, if even the process that would have done so was killed; end what a cut-off resize2fs began."""
        devices = _devices(home) if shape.access == "mount" else []
        if device := _writable(devices):
            with suppress(OSError), _root(device, shape.fs) as root:
                kernel.thaw(root)
        elif shape.fs == "ext4" and not devices and _ext4_errors(home):
            with suppress(OSError, CsiError), _opened(home) as image:
                mkfs.mend(image)

    def trouble(self, home: int, shape: Shape) -> str:
        """The file, then what its file system says of itself."""
        try:
            file = os.stat(_NAME, dir_fd=home, follow_symlinks=False)
        except FileNotFoundError:
            return "its image file is gone"
        if not stat.S_ISREG(file.st_mode):
            return "its image is no regular file"
        if file.st_size != shape.size:
            return f"its image has {file.st_size} bytes where {shape.size} are promised"
        return _fs_trouble(home, shape) if shape.access == "mount" else ""

    def extents(self, home: int, shape: Shape) -> Iterator[Extent]:
        """Data of the image."""
        with _opened(home, os.O_RDONLY) as image:
            yield from extents.allocated(image, shape.size)

    def changed(self, base: int, home: int, shape: Shape) -> Iterator[Extent]:
        """By the places of their extents on disk where they share some, else by their bytes."""
        with _opened(base, os.O_RDONLY) as old, _opened(home, os.O_RDONLY) as image:
            yield from extents.changed(old, image, shape.size)

    def device(self, home: int, shape: Shape) -> tuple[int, int] | None:
        """Its loop device."""
        found = _devices(home)
        return (loop.MAJOR, found[0].number) if found else None


def _expanded(shape: Shape, root: int, device: int) -> None:
    try:
        mkfs.grow(shape.fs, root, device, shape.size)
    except PermissionError:
        sentence = f"a mounted {shape.fs} is grown only by a driver with CAP_SYS_RESOURCE; stage the volume anew"
        raise CsiError("FAILED_PRECONDITION", sentence) from None


def _fs_trouble(home: int, shape: Shape) -> str:
    """Errors that ext4 recorded, a file system that the kernel shut down or made read-only."""
    if device := _writable(_devices(home)):
        try:
            with _root(device, shape.fs) as root:
                os.listdir(root)
        except OSError as error:
            return f"its {shape.fs} is not usable: {error.strerror}; unstage it, check or restore it"
        if any("ro" in mount.super_options for mount in mounts.of_device(device.id)):
            return f"its {shape.fs} went read-only after an error; unstage it, check or restore it"
    return _ext4_errors(home) if shape.fs == "ext4" else ""


def _ext4_errors(home: int) -> str:
    with _opened(home, os.O_RDONLY) as image:
        block = os.pread(image, 1024, 1024)
    if len(block) == 1024 and struct.unpack_from("<H", block, 0x3A)[0] & _EXT4_ERRORS:
        return "its ext4 recorded errors; unstage it and run e2fsck on its image, or restore a snapshot"
    return ""
