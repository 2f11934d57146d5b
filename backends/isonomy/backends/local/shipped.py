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
DEMO_DIGEST: str | None = "blake3:4eb6be2bd59eed94a2e6a39893c0c36729400d9fa336b7f93f0626add1b73680"
