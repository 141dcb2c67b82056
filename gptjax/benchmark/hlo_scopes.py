"""Which part of a training step each instruction of a compiled program belongs to, from the program's text.

XLA writes the name stack of `jax.named_scope` into the metadata of its instructions: `…/jvp(layer)/norm/mul` in the
forward pass and `…/transpose(jvp(layer))/norm/mul` in the backward pass. A fusion belongs to its matrix product or
kernel, if it has one, and otherwise to the scope of its own metadata or of most instructions in it.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Category = Literal[
    "attention",
    "linears",
    "head + loss",
    "elementwise, norms",
    "embedding",
    "optimizer",
    "gradient sums",
    "collectives",
    "copies",
    "outside any scope",
]
CATEGORIES: tuple[Category, ...] = Category.__args__  # pyright: ignore[reportAttributeAccessIssue]
"""Rows of a breakdown, in the order in which they are shown."""
Direction = Literal["forward", "backward", "recomputed", "update"]
"""Recomputed: the forward pass of rematerialised blocks, done again in the backward pass."""
DIRECTIONS: tuple[Direction, ...] = Direction.__args__  # pyright: ignore[reportAttributeAccessIssue]

SCOPES: dict[str, Category] = {
    "attention": "attention",
    "linear": "linears",
    "head": "head + loss",
    "loss": "head + loss",
    "embed": "embedding",
    "norm": "elementwise, norms",
    "dropout": "elementwise, norms",
    "layer": "elementwise, norms",
    "optimizer": "optimizer",
    "accumulate": "gradient sums",
}
"""Name of a `jax.named_scope` in the model and the training step → its category. The innermost one counts."""
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
PRODUCTS = ("dot", "convolution", "custom-call")
CONTROL = ("while", "call", "conditional", "parameter", "tuple", "get-tuple-element", "constant")
"""Instructions whose time is that of others, or none."""
MOVES = {
    *("bitcast", "concatenate", "constant", "copy", "copy-done", "copy-start", "dynamic-slice", "dynamic-update-slice"),
    *("get-tuple-element", "pad", "parameter", "reshape", "slice", "transpose", "tuple"),
}
"""A fusion of these alone moves data and computes nothing."""


@dataclass(frozen=True)
class Place:
    """Where the time of an instruction is counted."""

    category: Category
    direction: Direction


@dataclass(frozen=True)
class Instruction:
    """A line of a compiled program."""

    name: str
    opcode: str
    op_name: str
    """The name stack of the operation that it comes from; empty if unknown."""
    calls: str
    """The computation that a fusion runs; empty for other instructions."""


@dataclass
class Program:
    """The instructions of a compiled program."""

    instructions: dict[str, Instruction] = field(default_factory=dict)
    """Instructions by name."""
    computations: dict[str, list[Instruction]] = field(default_factory=dict)
    """Instructions by the name of their computation."""

    def locate(self, name: str) -> Place | None:
        """The place of an instruction; None for control flow and for names that are not in the program."""
        instruction = self.instructions.get(name)
        if instruction is None or instruction.opcode in CONTROL:
            return None
        inside = self.computations.get(instruction.calls, [])
        opcodes = {operation.opcode for operation in inside} or {instruction.opcode}
        scope, direction = find_scope(choose_op_name(instruction, inside))
        if any(opcode.startswith(COLLECTIVES) for opcode in opcodes):
            return Place("collectives", direction)
        if opcodes <= MOVES:
            return Place("copies", direction)
        return Place("outside any scope" if scope is None else SCOPES[scope], direction)


_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (?:\(.*?\)|\S+) ([a-z][\w-]*)\(")
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{")


def parse_program(text: str) -> Program:
    """Read the text of a compiled program (`jax.stages.Compiled.as_text()`)."""
    program, current = Program(), []
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = program.computations.setdefault(found[1], [])
        elif found := _INSTRUCTION.match(line):
            op_name, calls = re.search(r'op_name="((?:[^"\\]|\\.)*)"', line), re.search(r"\bcalls=%?([\w.-]+)", line)
            fused = calls[1] if calls and found[2] == "fusion" else ""
            instruction = Instruction(found[1], found[2], op_name[1] if op_name else "", fused)
            program.instructions[instruction.name] = instruction
            current.append(instruction)
    return program


def choose_op_name(instruction: Instruction, inside: list[Instruction]) -> str:
    """The name stack that stands for an instruction and the instructions `inside` its fusion."""
    for operation in inside:
        if operation.opcode in PRODUCTS and find_scope(operation.op_name)[0]:
            return operation.op_name
    if find_scope(instruction.op_name)[0]:
        return instruction.op_name
    scoped = Counter(operation.op_name for operation in inside if find_scope(operation.op_name)[0])
    return scoped.most_common(1)[0][0] if scoped else instruction.op_name


def find_scope(op_name: str, scopes: Mapping[str, Category] = SCOPES) -> tuple[str | None, Direction]:
    """The innermost known scope of a name stack, and the pass that it is in."""
    stack = op_name.partition(";")[0].rpartition("/")[0]  # without the operation's own name
    found = [word for word in re.findall(r"[A-Za-z_]\w*", stack) if word in scopes]
    if "rematted_computation" in stack:
        return (found[-1] if found else None), "recomputed"
    if "transpose(" in stack:
        return (found[-1] if found else None), "backward"
    return (found[-1] if found else None), "forward" if "jvp(" in stack else "update"
