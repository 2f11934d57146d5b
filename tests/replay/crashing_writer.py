"""Writers that are killed: forked from one process, so that starting them costs nothing.

    python -m tests.replay.crashing_writer DIR ROUNDS

In every round three processes write calls, each acknowledging a record on a pipe once it is
durable, until each is killed with SIGKILL at a random moment. Prints what was acknowledged: JSON
rows of sequence, kind, call id.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time

from tests.replay import making

from isonomy.replay import open_log


def write(path: str, worker: str, acknowledge: int) -> None:
    """Write calls until killed."""
    log = open_log(path)
    number = 0
    while True:
        number += 1
        call_id = f"call-{worker}-{number}"
        intent, result = making.call(call_id, f"question {number}", ["an", "swer"])
        for kind, entry in (("intent", intent), ("result", result)):
            (sequence,) = log.append([entry])
            os.write(acknowledge, f"{sequence} {kind} {call_id}\n".encode())


def main(path: str, rounds: int) -> None:
    """Run the rounds."""
    rng = random.Random(20240229)
    acknowledged = []
    for turn in range(rounds):
        running = []
        for number in range(3):
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                os.close(reader)
                write(path, f"{turn}-{number}", writer)
            os.close(writer)
            running.append((child, reader))
        for child, reader in running:
            text = os.read(
                reader, 1 << 16
            )  # Its first acknowledgement: the kill falls into its work.
            time.sleep(rng.random() * 0.02)
            os.kill(child, signal.SIGKILL)
            while piece := os.read(reader, 1 << 16):
                text += piece
            os.close(reader)
            os.waitpid(child, 0)
            for line in text.decode().splitlines(keepends=True):
                if line.endswith("\n"):
                    sequence, kind, call_id = line.split()
                    acknowledged.append((int(sequence), kind, call_id))
    print(json.dumps(acknowledged))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
