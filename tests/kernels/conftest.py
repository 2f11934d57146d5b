"""Every test leaves the instruction set and the thread count as it found them."""

from collections.abc import Iterator

import pytest

from isonomy import kernels


@pytest.fixture(autouse=True)
def _same_machine_afterwards() -> Iterator[None]:
    before = kernels.info()
    yield
    kernels.set_threads(before.threads)
    assert kernels.info().isa == before.isa


@pytest.fixture(params=["scalar", "avx2", "avx512", "avx512vnni"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each path in turn; one that this machine lacks is skipped, visibly."""
    name: str = request.param
    if name not in kernels.info().isas:
        pytest.skip(f"this machine does not run {name}")
    with kernels.using_isa(name):
        yield name
