"""Process that runs a peer in torch: `python -m gptjax.benchmark.peers.torch_worker`, started by `torch_client`.

It reads a line of JSON on stdin and writes one on stdout, again and again. The first line holds `peer` and `work`; the
answer describes the software. Each further line holds `count`, and the answer `seconds`. A failure is answered by
`error` and its `kind`: `missing` (a package), `memory` or `other`. JAX is not imported here.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from gptjax.benchmark.peers.work import TorchPeer, Work
from gptjax.core.serialization import from_json


def serve(lines: Iterable[str], write: Callable[[str], object]) -> None:
    """Answer each line by one call of `write`, until there is none."""
    run: Callable[[int], dict[str, float]] | None = None
    for line in lines:
        request = json.loads(line)
        try:
            if run is None:
                run, answer = start_peer(request)
            else:
                answer = run(request["count"])
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "kind": classify(error)}
        write(json.dumps(answer))


def start_peer(request: dict[str, Any]) -> tuple[Callable[[int], dict[str, float]], dict[str, Any]]:
    from gptjax.benchmark.peers import torch_models  # imports torch

    peer, work = from_json(request["peer"], TorchPeer), from_json(request["work"], Work)
    return torch_models.open_work(peer, work), torch_models.describe()


def classify(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return "missing"
    is_memory = "out of memory" in str(error).lower() or type(error).__name__ == "OutOfMemoryError"
    return "memory" if is_memory or isinstance(error, MemoryError) else "other"


def main() -> None:
    # What a peer prints must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, lambda line: print(line, file=answers, flush=True))


if __name__ == "__main__":
    main()
