"""The demo model that ships with the package, and the digest it must have.

``Local("demo")`` loads the folder `FOLDER` and refuses it when its model digest is not
`DEMO_DIGEST`, so that a damaged installation is found before it answers anything. The digest
changes with every training of the demo model; a test holds both in step. `None` means that no
digest is pinned.
"""

from __future__ import annotations

from pathlib import Path

NAME = "demo"
FOLDER = Path(__file__).parent / "demo"
DEMO_DIGEST: str | None = None
