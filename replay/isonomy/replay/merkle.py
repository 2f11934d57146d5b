"""The log's Merkle tree (RFC 6962, section 2): its root, and proofs about its leaves.

Leaves are the journal's leaf hashes in sequence; an inner node is ``SHA-256(0x01 || left ||
right)``, and a tree of n leaves splits at the largest power of two below n. An inclusion proof
shows that a leaf is in the tree of a given size, a consistency proof that a tree is the beginning
of a larger one: both are lists of hashes, from the leaves up. Whoever checks a proof needs nothing
but the functions at the end (algorithms of RFC 9162, 2.1.3.2 and 2.1.4.2).

Memory is a hash for every 4096 leaves; the rest is read again where a proof needs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from .hashing import HASH_BYTES

EMPTY = hashlib.sha256(b"").digest()
"""The root of no leaves."""

BLOCK = 1 << 12
"""Leaves whose common hash is kept."""

Read = Callable[[int, int], bytes]
"""Gives `count` leaf hashes from index `first` on, joined."""


def node(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Return the root over leaf hashes (or over the roots of full subtrees of equal size)."""
    level = list(hashes)
    if not level:
        return EMPTY
    while len(level) > 1:
        pairs = range(0, len(level) - 1, 2)
        above = [node(level[at], level[at + 1]) for at in pairs]
        if len(level) % 2:
            above.append(level[-1])
        level = above
    return level[0]


def _split(count: int) -> int:
    """Return the largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1


class Tree:
    """The tree over the first `size` leaves."""

    def __init__(self, read: Read, size: int) -> None:
        self.size = size
        self._read = read
        self._blocks = [
            root_of(self._leaves(first, min(first + BLOCK, size)))
            for first in range(0, size, BLOCK)
        ]

    @property
    def root(self) -> bytes:
        """The root of the whole tree, 32 bytes."""
        return root_of(self._blocks)

    def root_at(self, size: int) -> bytes:
        """Return the root that the tree had with its first `size` leaves.

        Raises:
            ValueError: the tree is smaller.
        """
        self._require(size)
        return self._root(0, size) if size else EMPTY

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """Return the proof that the leaf at `index` is in the tree of the first `size` leaves.

        Raises:
            ValueError: there is no such leaf in it.
        """
        size = self.size if size is None else size
        self._require(size)
        if not 0 <= index < size:
            raise ValueError(f"a tree of {size} leaves has no leaf {index}")
        return self._path(index, 0, size)

    def consistency(self, old: int, new: int | None = None) -> list[bytes]:
        """Return the proof that the tree of `old` leaves is the beginning of that of `new`.

        Raises:
            ValueError: the sizes don't follow each other, or the tree is smaller.
        """
        new = self.size if new is None else new
        self._require(new)
        if not 0 <= old <= new:
            raise ValueError(f"a tree of {new} leaves has no beginning of {old}")
        return self._subproof(old, 0, new, whole=True) if 0 < old < new else []

    def _require(self, size: int) -> None:
        if not 0 <= size <= self.size:
            raise ValueError(f"the tree has {self.size} leaves, not {size}")

    def _leaves(self, first: int, end: int) -> list[bytes]:
        data = self._read(first, end - first)
        return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]

    def _root(self, first: int, end: int) -> bytes:
        """Return the root over the leaves from `first` to `end`, a subtree of some tree."""
        if end - first <= BLOCK:
            return root_of(self._leaves(first, end))
        blocks = self._blocks[first // BLOCK : end // BLOCK]
        rest = end % BLOCK
        if rest:
            blocks.append(root_of(self._leaves(end - rest, end)))
        return root_of(blocks)

    def _path(self, index: int, first: int, end: int) -> list[bytes]:
        if end - first == 1:
            return []
        middle = first + _split(end - first)
        if index < middle:
            return [*self._path(index, first, middle), self._root(middle, end)]
        return [*self._path(index, middle, end), self._root(first, middle)]

    def _subproof(self, old: int, first: int, end: int, *, whole: bool) -> list[bytes]:
        if old == end - first:
            return [] if whole else [self._root(first, end)]
        split = _split(end - first)
        middle = first + split
        if old <= split:
            return [
                *self._subproof(old, first, middle, whole=whole),
                self._root(middle, end),
            ]
        return [
            *self._subproof(old - split, middle, end, whole=False),
            self._root(first, middle),
        ]


def included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Return whether `proof` shows that a leaf hash stands at `index` of the tree with `root`."""
    if not 0 <= index < size:
        return False
    at, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            found = node(sibling, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node(found, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and found == root


def consistent(
    old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Return whether `proof` shows that the tree of `old` leaves is the beginning of the new."""
    if not 0 <= old <= new:
        return False
    if old == new:
        return not proof and old_root == new_root
    if old == 0:
        return not proof and old_root == EMPTY
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            first, second = node(sibling, first), node(sibling, second)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            second = node(second, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and first == old_root and second == new_root
