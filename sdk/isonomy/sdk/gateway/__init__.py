"""The gateway: an OpenAI-compatible HTTP server in front of a guard.

Programs in any language get the policy by changing a base URL. `isonomy serve` runs it; `app` gives
it as an ASGI application to whoever has a server already. Needs the extra ``serve``. See README.md
here.

- `settings`, `keys`: how it is set, and who may use it
- `exchange`, `body`, `events`: HTTP: ids, errors, what comes in, what goes out in pieces
- `running`: what runs, bounded and cancelled when nobody waits for it
- `completions`, `application`: the routes
- `metrics`, `logs`: what an operator sees
- `serving`, `protocol`, `processes`, `worker`: the processes of `isonomy serve`
"""

from __future__ import annotations

from .application import app
from .keys import Keys
from .settings import Settings

__all__ = ["Keys", "Settings", "app"]
