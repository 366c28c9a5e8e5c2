"""The books of a pool: what may still be promised, against a model of a disk whose blocks are counted one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wherry_csi.backend import Shape
from wherry_csi.capacity import Ledger, shared_bytes
from wherry_csi.pools import Record
from wherry_csi.records import Snapshot, Volume

DISK = 1000


class Model:
    """A disk with reflink: each file is a list of block numbers, None where it has a hole."""

    def __init__(self) -> None:
        self.files: dict[str, list[int | None]] = {}
        self.records: dict[str, Record] = {}
        self._fresh = 0

    def create(self, size: int) -> None:
        ident = f"v{len(self.files)}-{self._fresh}"
        self.files[ident] = [None] * size
        self.records[ident] = Volume(ident, ident, 0, "image", Shape(size, "block"))

    def write(self, ident: str) -> None:
        """All of a volume anew."""
        self.files[ident] = [self._block() for _ in self.files[ident]]

    def copy(self, ident: str, snapshot: bool) -> None:
        source, new = self.records[ident], f"{'s' if snapshot else 'c'}{self._block()}"
        self.files[new] = list(self.files[ident])
        taken = self.allocated(ident)
        family = source.family or (source.volume if isinstance(source, Snapshot) else source.id)
        if snapshot:
            self.records[new] = Snapshot(new, new, 0, "image", source.shape, ident, taken, family, taken)
        else:
            kind = "snapshot" if isinstance(source, Snapshot) else "volume"
            shape, origin = source.shape, (kind, ident)
            self.records[new] = Volume(new, new, 0, "image", shape, (), {}, origin, family, taken)

    def delete(self, ident: str) -> None:
        del self.files[ident], self.records[ident]

    def allocated(self, ident: str) -> int:
        return sum(block is not None for block in self.files[ident])

    @property
    def used(self) -> int:
        return len({block for blocks in self.files.values() for block in blocks if block is not None})

    def ledger(self) -> Ledger:
        sizes = {ident: self.allocated(ident) for ident in self.files}
        kept = list(self.records.values())
        promised = sum(record.promised for record in kept)
        return Ledger(DISK - self.used, 0, sum(sizes.values()), shared_bytes(kept, sizes), promised, 0, 1.0)

    def _block(self) -> int:
        self._fresh += 1
        return self._fresh


def test_writing_what_was_promised_changes_nothing() -> None:
    model = Model()
    model.create(100)
    assert model.ledger().available == DISK - 100
    (volume,) = model.files
    model.write(volume)
    assert model.ledger().available == DISK - 100


def test_a_copy_costs_what_it_may_come_to_whoever_is_deleted() -> None:
    for snapshot in (False, True):
        for gone in (0, 1):
            model = Model()
            model.create(100)
            (volume,) = model.files
            model.write(volume)
            model.copy(volume, snapshot)
            assert model.ledger().available == DISK - 200
            model.delete(sorted(model.files, key=lambda ident: ident != volume)[gone])
            assert model.ledger().available == DISK - 100


def test_what_was_restored_stands_alone_when_all_else_is_gone() -> None:
    model = Model()
    model.create(100)
    (volume,) = model.files
    model.write(volume)
    model.copy(volume, snapshot=True)
    snapshot = next(name for name in model.files if name != volume)
    model.copy(snapshot, snapshot=False)
    assert model.ledger().available == DISK - 300
    model.delete(volume)
    assert model.ledger().available == DISK - 200
    model.delete(snapshot)
    assert model.ledger().available == DISK - 100


def test_reserve_and_overprovision() -> None:
    books = Ledger(1000, 100, 50, 0, 300, 0, 1.0)
    assert books.available == 650
    assert books._replace(overprovision=2.0).available == 2 * 950 - 300
    assert books._replace(elsewhere=200).available == 450


@given(st.lists(st.tuples(st.sampled_from("cwksd"), st.integers(0, 99), st.integers(1, 40)), max_size=40))
def test_never_more_is_said_to_be_left_than_can_be_kept(steps: list[tuple[str, int, int]]) -> None:
    """Whatever happened: if every volume were now written whole, no block shared, what is left would be there still."""
    model = Model()
    for verb, which, size in steps:
        names = sorted(model.files)
        volumes = [name for name in names if isinstance(model.records[name], Volume)]
        if verb == "c":
            model.create(size)
        elif verb == "w" and volumes:
            model.write(volumes[which % len(volumes)])
        elif verb == "s" and volumes:
            model.copy(volumes[which % len(volumes)], snapshot=True)
        elif verb == "k" and names:
            model.copy(names[which % len(names)], snapshot=False)
        elif verb == "d" and names:
            model.delete(names[which % len(names)])
    left = model.ledger().available
    for name in sorted(model.files):
        if isinstance(model.records[name], Volume):
            model.write(name)
    assert left <= DISK - model.used
