"""The contender's side: one JSON line in, one out. Standard library only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def serve(make: Callable[..., Any]) -> None:
    """Make a contender from the command line's JSON object, then run its methods as asked.

    What libraries print goes to standard error; standard output is the line's alone. An error ends
    the command, not the process.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(run: Callable[[], Any]) -> Any:
        try:
            value = run()
        except Exception as error:
            line = {"error": f"{type(error).__name__}: {error}"}
            value = None
        else:
            line = {"value": value if isinstance(value, (int, float, str, list, dict)) else None}
        print(json.dumps(line), file=out, flush=True)
        return value

    contender = answer(lambda: make(**json.loads(sys.argv[1])))
    if contender is None:
        return
    for request in sys.stdin:
        command, arguments = json.loads(request)
        answer(lambda c=command, a=arguments: getattr(contender, c)(**a))  # type: ignore[misc]
