"""The Merkle tree against the published roots of Certificate Transparency, and its proofs."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isonomy.replay import merkle
from isonomy.replay.merkle import Tree, consistent, included, node, root_of

# The leaves and roots of the test data of the Certificate Transparency reference implementation.
LEAVES = (
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    bytes(range(96, 112)).hex(),
)
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def leaf_hashes(count: int) -> list[bytes]:
    return [hashlib.sha256(b"\x00" + number.to_bytes(4, "big")).digest() for number in range(count)]


def tree_of(hashes: list[bytes]) -> Tree:
    return Tree(lambda first, count: b"".join(hashes[first : first + count]), len(hashes))


def recursive_root(hashes: list[bytes]) -> bytes:
    """MTH as RFC 6962 writes it down."""
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    return node(recursive_root(hashes[:split]), recursive_root(hashes[split:]))


@pytest.mark.parametrize("size", range(1, 9))
def test_the_published_roots(size: int) -> None:
    hashes = [hashlib.sha256(b"\x00" + bytes.fromhex(leaf)).digest() for leaf in LEAVES]
    assert tree_of(hashes).root_at(size).hex() == ROOTS[size - 1]
    assert root_of(hashes[:size]).hex() == ROOTS[size - 1]


def test_the_empty_tree() -> None:
    assert tree_of([]).root == hashlib.sha256(b"").digest() == merkle.EMPTY


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 70), block=st.sampled_from([1, 2, 8, 64]))
def test_every_proof_of_a_tree_holds_and_no_other(size: int, block: int) -> None:
    hashes = leaf_hashes(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merkle, "BLOCK", block)
        tree = tree_of(hashes)
        assert tree.root == recursive_root(hashes)
        for index in range(size):
            proof = tree.inclusion(index)
            assert included(hashes[index], index, size, proof, tree.root)
            assert not included(hashes[index][::-1], index, size, proof, tree.root)
            assert not included(hashes[index], index + 1, size, proof, tree.root)
            assert not included(hashes[index], index, size, [*proof, tree.root], tree.root)
            assert not proof or not included(hashes[index], index, size, proof[:-1], tree.root)
        for old in range(size + 1):
            proof = tree.consistency(old)
            root = tree.root_at(old)
            assert consistent(old, size, root, tree.root, proof)
            if 0 < old < size:
                assert root == recursive_root(hashes[:old])
                assert not consistent(old, size, root[::-1], tree.root, proof)
                assert not consistent(old, size, root, tree.root[::-1], proof)
                assert not consistent(old, size, root, tree.root, proof[:-1])
                assert not consistent(old, size, root, tree.root, [*proof, root])


def test_what_is_not_there_is_refused() -> None:
    tree = tree_of(leaf_hashes(5))
    for wrong in (lambda: tree.inclusion(5), lambda: tree.root_at(6), lambda: tree.consistency(6)):
        with pytest.raises(ValueError, match="5 leaves"):
            wrong()
    assert not included(b"", -1, 5, [], tree.root)
    assert not consistent(3, 2, b"", b"", [])


def test_a_tree_larger_than_a_block() -> None:
    hashes = leaf_hashes(merkle.BLOCK * 2 + 5)
    tree = tree_of(hashes)
    assert tree.root == recursive_root(hashes)
    for index in (0, merkle.BLOCK - 1, merkle.BLOCK, len(hashes) - 1):
        assert included(hashes[index], index, len(hashes), tree.inclusion(index), tree.root)
    proof = tree.consistency(merkle.BLOCK + 1)
    assert consistent(
        merkle.BLOCK + 1, len(hashes), tree.root_at(merkle.BLOCK + 1), tree.root, proof
    )
