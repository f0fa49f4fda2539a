"""The cost of one run of a program compiled for a TPU, on one chip, read from its optimized HLO.

XLA's own totals (``compiled.cost_analysis()``: ``flops``, ``optimal_seconds``) count the body of a
loop once, however often it runs. Here, from ENTRY on, everything in a loop's body counts once for
each iteration. The number of iterations is the bound that the loop's condition compares with;
`jax.lax.scan`, ``map`` and ``fori_loop`` count from 0 in steps of 1. Of a branch at run time the
most expensive alternative counts.

What the sums contain:

- ``cycles``: the estimates of libtpu's cost model (``estimated_cycles`` of an instruction). They
  cover arithmetic and the reads and writes of the instruction itself, but neither instructions
  without an estimate (small copies, scalars) nor the time to start an instruction.
- ``kernels``: cycles of custom calls to TPU kernels (Pallas's, and libtpu's own for attention),
  which have no such estimate: for each call the larger of its issue cycles
  (`sammi_jax.pods.bundles`) and the time for its operands and results in HBM, each moved once.
- ``sent``: bytes that each kind of collective sends, as a ring over its group would (`_sent`). With
  several slices these are the collectives inside a slice, over ICI.
- ``sent_dcn``: the same of the collectives between slices. In the program they are pairs of
  ``send`` and ``recv`` by which a chip gives its part to libtpu's MegaScale runtime.
- ``copied``: bytes of the asynchronous copies between HBM and the on-chip memory. They run in
  parallel with arithmetic and are not part of ``cycles``.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from sammi_jax.training.flops import OTHER, Scopes

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_LAYOUT = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")


@dataclass(frozen=True)
class Instruction:
    """A line ``name = shape opcode(rest`` of HLO text; ``rest`` is operands and attributes."""

    name: str
    shape: str
    opcode: str
    rest: str

    def find(self, pattern: str) -> str | None:
        """The first group of a pattern in the attributes."""
        found = re.search(pattern, self.rest)
        return found[1] if found else None

    @property
    def is_kernel(self) -> bool:
        """Whether it is a custom call to a program for the TPU core."""
        return self.opcode == "custom-call" and '"tpu_custom_call"' in self.rest

    @property
    def code(self) -> str:
        """A kernel's program before compilation."""
        return self.find(r'"body":"([^"]*)"') or self.name

    def called(self, attribute: str) -> str:
        """The computation that an attribute such as ``body`` names."""
        return self.find(rf"\b{attribute}=%?([\w.\-]+)") or ""


@dataclass
class Cost:
    """Sums over one run of a computation, on one chip; see the module.

    Attributes:
        cycles: by part of the model.
        kernels: cycles of custom calls, by part of the model.
        sent: bytes by kind of collective inside a slice.
        sent_dcn: bytes by kind of collective between slices.
        copied: bytes.
        unknown_loops: loops of an unknown number of iterations, counted as one iteration.
        unknown_kernels: kernels whose bundles are not known, so that only their memory counts.
    """

    cycles: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    sent_dcn: Counter[str] = field(default_factory=Counter)
    copied: int = 0
    unknown_loops: int = 0
    unknown_kernels: int = 0

    def add(self, other: "Cost", times: int = 1) -> None:
        """Add another cost so many times."""
        for name in ("cycles", "kernels", "sent", "sent_dcn"):
            more = {key: times * value for key, value in getattr(other, name).items()}
            getattr(self, name).update(more)
        self.copied += times * other.copied
        self.unknown_loops += other.unknown_loops
        self.unknown_kernels += other.unknown_kernels


def program_cost(
    text: str,
    scopes: Iterable[str] = (),
    issue_cycles: Callable[[str], int | None] = lambda name: None,
    bytes_per_cycle: float = float("inf"),
) -> Cost:
    """The cost of a compiled program.

    Args:
        text: ``compiled.as_text()``.
        scopes: names given by `jax.named_scope`. ``cycles`` and ``kernels`` are summed by the
            innermost of them, apart for the backward pass (``NAME backward``).
        issue_cycles: of the custom call of a name; None where they are not known.
        bytes_per_cycle: that the chip's memory moves.
    """
    return _Walk(text, scopes, issue_cycles, bytes_per_cycle).run()


class _Walk:
    """The computations of a program, and the sums over them."""

    def __init__(
        self,
        text: str,
        scopes: Iterable[str],
        issue_cycles: Callable[[str], int | None],
        bytes_per_cycle: float,
    ):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                current = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                current[found[1]] = Instruction(*found.groups())
        devices = re.search(r"\bnum_partitions=(\d+)", text)
        self.devices = int(devices[1]) if devices else 1
        self.scopes = Scopes(scopes)
        self.bytes_per_cycle = bytes_per_cycle
        self.issued = self._issued(issue_cycles)

    def run(self) -> Cost:
        return self._computation(self.entry, OTHER)

    def _issued(self, issue_cycles: Callable[[str], int | None]) -> dict[str, int | None]:
        """Issue cycles of every kernel; of equal ones libtpu writes the bundles of one."""
        kernels = [
            item
            for computation in self.computations.values()
            for item in computation.values()
            if item.is_kernel
        ]
        by_code: dict[str, int] = {}
        found = {item.name: issue_cycles(item.name) for item in kernels}
        for item in kernels:
            if (cycles := found[item.name]) is not None:
                by_code[item.code] = max(cycles, by_code.get(item.code, 0))
        return {
            item.name: by_code.get(item.code) if found[item.name] is None else found[item.name]
            for item in kernels
        }

    def _kernel_bytes(self, within: str, item: Instruction) -> int:
        """What a kernel's operands and results take in HBM."""
        others = self.computations[within]
        operands = re.findall(r"%([\w.\-]+)", item.rest.partition(")")[0])
        shapes = [item.shape, *(others[name].shape for name in operands if name in others)]
        return sum(map(_hbm_bytes, shapes))

    def _computation(self, name: str, part: str) -> Cost:
        total = Cost()
        for instruction in self.computations.get(name, {}).values():
            self._instruction(total, name, instruction, self._part(instruction, part))
        fused = {}  # a collective that overlaps several fusions is written in each of them
        for instruction in self.computations.get(name, {}).values():
            if instruction.opcode in ("fusion", "async-start"):
                fused.update(self._fused_collectives(instruction.called("calls")))
        for kind, sent in fused.values():
            total.sent[kind] += sent
        return total

    def _fused_collectives(self, name: str) -> dict[str, tuple[str, int]]:
        """Kind and bytes sent of the collectives inside a fusion, by channel."""
        found: dict[str, tuple[str, int]] = {}
        for item in self.computations.get(name, {}).values():
            if item.opcode in COLLECTIVES:
                sent = _sent(item.opcode, _shape_bytes(item.shape), self._group(item))
                found[item.find(r"channel_id=(\d+)") or item.name] = (item.opcode, sent)
            elif item.opcode == "fusion":
                found.update(self._fused_collectives(item.called("calls")))
        return found

    def _instruction(self, total: Cost, within: str, item: Instruction, part: str) -> None:
        kind = item.opcode.removesuffix("-done")
        if item.opcode == "while":
            trips = self._trips(item.called("condition"))
            total.unknown_loops += trips is None
            for called in ("body", "condition"):
                total.add(self._computation(item.called(called), part), trips or 1)
        elif item.opcode == "conditional":
            branches = item.find(r"\bbranch_computations=\{([^}]*)\}") or ", ".join(
                (item.called("true_computation"), item.called("false_computation"))
            )
            costs = [self._computation(b.strip(" %"), part) for b in branches.split(",")]
            total.add(max(costs, key=lambda cost: cost.cycles.total()))
        elif item.opcode == "call":
            total.add(self._computation(item.called("to_apply"), part))
        elif kind in COLLECTIVES:
            start = self.computations[within].get(item.find(r"^%?([\w.\-]+)") or "", item)
            asked = start if item.opcode.endswith("-done") else item
            total.sent[kind] += _sent(kind, _shape_bytes(item.shape), self._group(asked))
        elif item.opcode == "send" and "xla_megascale_runtime" in item.rest:
            kind = (item.find(r'_transfer_type="(\w+)"') or OTHER).lower().replace("_", "-")
            slices = (item.find(r'_megascale_target="\{([\d,]+)\}') or "").count(",") + 1
            given = _shape_bytes(item.shape.partition("}")[0])  # the rest is the transfer's own
            total.sent_dcn[kind] += _sent_dcn(kind, given, slices)
        elif item.opcode in ("copy-done", "slice-done"):
            total.copied += _shape_bytes(item.shape)
        elif item.is_kernel:
            issued = self.issued[item.name]
            moved = self._kernel_bytes(within, item) / self.bytes_per_cycle
            total.kernels[part] += max(issued or 0, round(moved))
            total.unknown_kernels += issued is None
        total.cycles[part] += int(item.find(r'"estimated_cycles":"(\d+)"') or 0)

    def _part(self, item: Instruction, part: str) -> str:
        """The scope of an instruction; without a name, that of the loop around it."""
        return self.scopes.part(item.find(r'op_name="([^"]*)"') or "") or part

    def _trips(self, condition: str) -> int | None:
        instructions = self.computations.get(condition, {}).values()
        bounds = [
            item.find(r"^(\d+)\)")
            for item in instructions
            if item.opcode == "constant" and item.shape.startswith("s32[]")
        ]
        counted = any("direction=LT" in item.rest for item in instructions)
        return int(bounds[0]) if counted and len(bounds) == 1 and bounds[0] else None

    def _group(self, item: Instruction) -> int:
        """The number of chips that take part."""
        if listed := item.find(r"replica_groups=\{\{([\d,]+)\}"):
            return listed.count(",") + 1
        if sizes := item.find(r"replica_groups=\[(?:\d+,)*(\d+)\]"):
            return int(sizes)
        if named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", item.rest):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
            axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
            return int(np.prod([int(part or sizes[axis]) for axis, part in axes]))
        return self.devices


def _shape_bytes(shape: str) -> int:
    return sum(
        _BYTES.get(dtype, 4) * int(np.prod([int(n) for n in sides.split(",") if n], dtype=np.int64))
        for dtype, sides in _ARRAY.findall(shape)
    )


def _hbm_bytes(shape: str) -> int:
    """Bytes of the arrays of a shape that lie in HBM (memory space 0), filled up to whole tiles."""
    total = 0
    for dtype, sides, order, rest in _LAYOUT.findall(shape):
        if re.search(r"S\([1-9]", rest):
            continue
        extents = [int(n) for n in sides.split(",") if n]
        tile = re.match(r"T\(([\d,]+)\)", rest)
        if tile and order:
            tiled = [int(n) for n in tile[1].split(",")]
            for axis, side in zip(order.split(","), reversed(tiled), strict=False):
                extents[int(axis)] += -extents[int(axis)] % side
        total += _BYTES.get(dtype, 4) * int(np.prod(extents, dtype=np.int64))
    return total


def _sent(kind: str, result: int, group: int) -> int:
    """Bytes that one of ``group`` chips sends for a result of so many bytes, around a ring."""
    if kind == "reduce-scatter":
        return result * (group - 1)
    if kind == "collective-permute":
        return result
    return (2 if kind == "all-reduce" else 1) * result * (group - 1) // group


def _sent_dcn(kind: str, given: int, slices: int) -> int:
    """Bytes that a chip sends around a ring of so many slices, for what it gives of its own."""
    if kind == "all-gather":
        return given * (slices - 1)
    return (2 if kind == "all-reduce" else 1) * given * (slices - 1) // slices
