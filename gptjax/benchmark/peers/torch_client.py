"""A peer in torch as a contestant. It runs in a process of its own, so that thread pools do not disturb each other."""

import json
import subprocess
import sys
import tempfile
from typing import Any

from gptjax.benchmark.peers.work import TorchPeer, Work
from gptjax.core.errors import UserError
from gptjax.core.serialization import to_json

COMMAND = (sys.executable, "-m", "gptjax.benchmark.peers.torch_worker")
SHOWN_LINES = 15
"""Lines of a worker's stderr that an error message shows."""


class OutOfMemory(Exception):
    """The work did not fit."""


class TorchContestant:
    """A worker process with one peer and one work."""

    def __init__(self, peer: TorchPeer, work: Work) -> None:
        """Start the process and build the model.

        Raises:
            UserError: torch or transformers is missing, or the peer failed.
            OutOfMemory: the work does not fit.
        """
        self.name = peer.name
        self.rows, self.tokens = work.sequences, work.tokens
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (close ends it)
        self._process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True, bufsize=1
        )
        self.software = self._ask({"peer": to_json(peer), "work": to_json(work)})

    def run(self, count: int) -> float:
        return float(self._ask({"count": count})["seconds"])

    def close(self) -> None:
        """End the process. Its memory is free afterwards."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": "its process ended", "kind": "other"}
        if "error" in answer:
            self._fail(answer)
        return answer

    def _fail(self, answer: dict[str, Any]) -> None:
        self._stderr.seek(0)
        printed = "".join(self._stderr.readlines()[-SHOWN_LINES:]).strip()
        self.close()
        if answer["kind"] == "memory":
            raise OutOfMemory(f"{self.name}: {answer['error']}")
        if answer["kind"] == "missing":
            raise UserError(
                f"peer {self.name} cannot run ({answer['error']}). Install torch and transformers: "
                'pip install -e ".[hf]".'
            )
        raise UserError(f"peer {self.name} failed: {answer['error']}\n{printed}".rstrip())
