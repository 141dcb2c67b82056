#!/usr/bin/env bash
# A dataclass field typed by a runtime-checkable Protocol: tyro gives it flags only if the Protocol has no data member.
#
# With methods alone, the default's class decides the flags. One annotated attribute in the Protocol, which the default's
# class has too, and the same field silently loses them: `--help` leaves them out and the flag is "unrecognized".
# The cause: tyro narrows the field's type to the default's class by `issubclass`, which Python refuses for Protocols
# with data members.
#
# Versions: Python 3.11 or newer, tyro 1.0.17. Seen:
#     {'MethodsOnly': 'Part(size=5)', 'WithData': 'exit 2: Unrecognized'}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "tyro==1.0.17"
cat > "$work/try.py" <<'PY'
import contextlib
import io
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import tyro


@runtime_checkable
class MethodsOnly(Protocol):
    def run(self) -> int: ...


@runtime_checkable
class WithData(Protocol):
    size: int

    def run(self) -> int: ...


@dataclass(frozen=True)
class Part:
    size: int = 3

    def run(self) -> int:
        return self.size


def parse(protocol: type) -> str:
    @dataclass(frozen=True)
    class Config:
        part: protocol = Part()

    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            return str(tyro.cli(Config, args=["--part.size=5"], config=(tyro.conf.AvoidSubcommands,)).part)
    except SystemExit as stop:
        return f"exit {stop.code}: {'Unrecognized' if 'nrecognized' in output.getvalue() else 'other'}"


assert isinstance(Part(), MethodsOnly) and isinstance(Part(), WithData)
found = {protocol.__name__: parse(protocol) for protocol in (MethodsOnly, WithData)}
print(found)
assert found == {"MethodsOnly": "Part(size=5)", "WithData": "exit 2: Unrecognized"}, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py"
