"""What a compiled program does, from its text (optimised HLO): products, exchanges between devices, whole copies.

XLA's own counts take the inside of a loop once, and those of CUDA's compiler need a device. Here everything inside of a
loop counts as often as it runs.
"""

import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast"),
    "ragged-all-to-all",
)
_NAME = re.compile(r"%[\w.\-]+")
_HEAD = re.compile(r"^\s*(ENTRY )?(%[\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+[a-z\d]*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%[\w.\-]+)")
_TRIPS = re.compile(r'"?known_trip_count"?\s*:\s*\{\s*"n"\s*:\s*"(\d+)"')
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_TILED = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_OF_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\[)([^}\]]*)[}\]]')
_BATCH_GROUPS = re.compile(r"batch_group_count=(\d+)")
# cuDNN's calls say what the convolution is whose result or gradient they give: where its input, kernel and output are
# among (first operand, second operand, result).
_CUDNN = {"BackwardInput": (2, 1, 0), "BackwardFilter": (0, 2, 1), "Forward": (0, 1, 2)}


@dataclass(frozen=True)
class Collective:
    """An exchange between devices.

    Attributes:
      kind: one of `KINDS`.
      bytes: that each device puts into it.
      times: how often it runs in one call of the program; None inside of a loop whose length is not known.
      group: the number of devices that exchange with each other; None if the text does not say.
    """

    kind: str
    bytes: int
    times: int | None
    group: int | None = None

    @property
    def total(self) -> int:
        """Bytes of one call of the program; a loop of unknown length counts once."""
        return self.bytes * (1 if self.times is None else self.times)


@dataclass(frozen=True)
class _Instruction:
    root: bool
    name: str
    shape: str
    operation: str
    rest: str  # operands and attributes

    @property
    def operands(self) -> list[str]:
        return _NAME.findall(_until_closed(self.rest))


@dataclass(frozen=True, eq=False)
class Module:
    """The computations of a program: the instructions of each, by name.

    Attributes:
      entry: the name of the computation that is called.
      computations: all of them.
    """

    entry: str
    computations: Mapping[str, Sequence[_Instruction]]

    @classmethod
    def of(cls, text: str) -> "Module":
        """From `Compiled.as_text()`, the optimised HLO of one device."""
        computations: dict[str, list[_Instruction]] = {}
        entry, current = "", None
        for line in text.splitlines():
            if match := _HEAD.match(line):
                current = computations.setdefault(match[2], [])
                entry = match[2] if match[1] else entry
            elif current is not None and (match := _INSTRUCTION.match(line)):
                current.append(_Instruction(bool(match[1]), *match.groups()[1:]))
        return cls(entry, computations)

    @property
    def collectives(self) -> list[Collective]:
        """The exchanges, each once, however many instructions start, carry and end it."""
        found: dict[str, Collective] = {}
        for one, computation, times in self._running():
            kind = one.operation.removesuffix("-start")
            if kind not in KINDS or (group := _group(one.rest)) == 1:
                continue
            size = sum(nbytes(self._shapes.get(name, "")) for name in one.operands)
            identity = one.name
            if computation in self._fused:
                # On a TPU fusions that compute during an exchange repeat it in their text. Its channel alone does not
                # identify it: all sums of a `shard_map` have the same.
                channel = re.search(r"channel_id=\d+", one.rest)
                identity = f"{kind} {channel and channel[0]} {_dense(one.shape)}"
            if identity not in found or found[identity].bytes < size:
                found[identity] = Collective(kind, size, times, group)
        return list(found.values())

    @property
    def flops(self) -> float:
        """Operations in matrix products and convolutions; a loop of unknown length counts once."""
        return float(sum((1 if times is None else times) * self._flops(one) for one, _, times in self._running()))

    @property
    def loops_are_known(self) -> bool:
        """Whether the length of every loop is known."""
        return all(times is not None for *_, times in self._running())

    @property
    def values(self) -> list[tuple[str, str, int]]:
        """What operations give, (name by JAX, shape, bytes), but for whole tuples and what is inside of fusions."""
        found = []
        for name, body in self.computations.items():
            for one in body if self._times[name] != 0 and name not in self._fused else ():
                if not one.shape.startswith("(") and one.operation not in ("parameter", "get-tuple-element", "bitcast"):
                    named = re.search(r'op_name="([^"]*)"', one.rest)
                    found.append((named[1] if named else one.operation, _dense(one.shape), nbytes(one.shape)))
        return found

    def copied(self, shapes: Iterable[str]) -> list[str]:
        """Those of some shapes, such as "u8[50000,32,32,3]", of which the program makes a whole copy in any layout."""
        moves = ("copy", "copy-start", "transpose", "bitcast-convert")
        copies = {_dense(one.shape) for one, *_ in self._running() if one.operation in moves}
        return sorted(set(shapes) & copies)

    def _running(self) -> Iterator[tuple[_Instruction, str, int | None]]:
        """Every instruction that runs, the computation that it is in, and how often."""
        for name, body in self.computations.items():
            if self._times[name] != 0:
                yield from ((one, name, self._times[name]) for one in body)

    @functools.cached_property
    def _fused(self) -> set[str]:
        """The computations of fusions: what they give piece by piece is not in memory."""
        bodies = (one for body in self.computations.values() for one in body if one.operation == "fusion")
        return {name for one in bodies for called in _CALLED.findall(one.rest) for name in _NAME.findall(called)}

    @functools.cached_property
    def _shapes(self) -> dict[str, str]:
        return {one.name: one.shape for body in self.computations.values() for one in body}

    @functools.cached_property
    def _times(self) -> dict[str, int | None]:
        """How often each computation runs in one call of the program; 0: never, None: not known."""
        callers: dict[str, list[tuple[str, int | None]]] = {name: [] for name in self.computations}
        for name, body in self.computations.items():
            for called, trips in self._calls(body):
                callers.setdefault(called, []).append((name, trips))
        times: dict[str, int | None] = {self.entry: 1}

        def of(name: str) -> int | None:
            if name not in times:
                total: int | None = 0
                for caller, trips in callers[name]:
                    above = of(caller)
                    if above != 0:
                        total = None if total is None or above is None or trips is None else total + above * trips
                times[name] = total
            return times[name]

        return {name: of(name) for name in self.computations}

    def _calls(self, body: Iterable[_Instruction]) -> Iterator[tuple[str, int | None]]:
        """The computations that a computation calls, and how often each time."""
        for one in body:
            trips = self._trips(one) if one.operation == "while" else 1
            for called in _CALLED.findall(one.rest):
                yield from ((name, trips) for name in _NAME.findall(called))

    def _trips(self, loop: _Instruction) -> int | None:
        """How often a loop runs: as annotated, or by its condition, a number that counts from 0 to a constant."""
        if match := _TRIPS.search(loop.rest):
            return int(match[1])
        condition = re.search(r"condition=(%[\w.\-]+)", loop.rest)
        body = self.computations.get(condition[1], []) if condition else []
        known = {one.name: one.rest for one in body if one.operation == "constant"}
        for one in body:
            if one.root and one.operation == "compare" and "direction=LT" in one.rest:
                bounds = [known[name] for name in one.operands[1:] if name in known]
                return int(match[0]) if bounds and (match := re.match(r"\d+", bounds[0])) else None
        return None

    def _flops(self, one: _Instruction) -> int:
        sizes = [*(_dims(self._shapes.get(name, "")) for name in one.operands[:2]), _dims(one.shape)]
        target = re.search(r'custom_call_target="__cu(\w+)\$(?:lt\$)?(\w+)', one.rest)
        if one.operation == "convolution":
            return _convolution(one.rest, *sizes)
        if one.operation == "dot" or (target and target[1] == "blas"):
            contracted = _CONTRACTED.search(one.rest)
            axes = [int(axis) for axis in re.findall(r"\d+", contracted[1])] if contracted else []
            return 2 * math.prod(sizes[2]) * math.prod(sizes[0][axis] for axis in axes)
        if target and target[2].startswith("conv"):
            order = next(places for kind, places in _CUDNN.items() if kind in target[2])
            return _convolution(one.rest, *(sizes[place] for place in order))
        return 0


def nbytes(shape: str) -> int:
    """Of "f32[128,10]{1,0}", or of a tuple of such."""
    total = 0
    for kind, sizes in _SHAPE.findall(shape):
        bits = re.search(r"\d+", kind)
        total += -(-math.prod(map(int, filter(None, sizes.split(",")))) * (int(bits[0]) if bits else 8) // 8)
    return total


def _dense(shape: str) -> str:
    """ "u8[50,32]{1,0:T(8,128)}" -> "u8[50,32]"."""
    return re.sub(r"\{[^}]*\}", "", shape)


def _dims(shape: str) -> list[int]:
    """The sizes of an array, of a tuple those of its first."""
    match = _SHAPE.search(shape)
    return [int(size) for size in match[2].split(",") if size] if match else []


def _group(attributes: str) -> int | None:
    """How many devices exchange with each other."""
    if match := _LISTED.search(attributes):
        return len(match[1].split(","))
    if match := _TILED.search(attributes):
        return int(match[1])
    if match := _OF_MESH.search(attributes):
        sizes, axes = dict(_AXIS.findall(match[1])), re.findall(r"'(\w+)'", match[2])
        return math.prod(int(sizes[axis]) for axis in axes) if set(axes) <= sizes.keys() else None
    return None


def _convolution(attributes: str, image: list[int], kernel: list[int], output: list[int]) -> int:
    """Operations of a convolution: products with the border or between dilated entries are not counted."""
    if not (labels := _LABELS.search(attributes)):
        return 0
    of_image, of_kernel, of_output = (dict(zip(label, range(len(label)), strict=True)) for label in labels.groups())
    groups = int(match[1]) if (match := _BATCH_GROUPS.search(attributes)) else 1
    window = dict(part.split("=") for part in match[1].split()) if (match := _WINDOW.search(attributes)) else {}
    spatial = sorted(label for label in of_image if label.isdigit())
    along = lambda name, default: window[name].split("x") if name in window else [default] * len(spatial)
    names = ("stride", "1"), ("pad", "0_0"), ("lhs_dilate", "1"), ("rhs_dilate", "1")
    products = kernel[of_kernel["i"]] * kernel[of_kernel["o"]] * image[of_image["b"]] // groups
    for axis, stride, pad, spread, apart in zip(spatial, *(along(*name) for name in names), strict=True):
        outs, taps = np.arange(output[of_output[axis]]), np.arange(kernel[of_kernel[axis]])
        places = outs[:, None] * int(stride) + taps * int(apart) - int(pad.split("_")[0])
        inside = (places >= 0) & (places <= (image[of_image[axis]] - 1) * int(spread)) & (places % int(spread) == 0)
        products *= int(inside.sum())
    return 2 * products


def _until_closed(text: str) -> str:
    """The part of a text before the bracket that closes the one just opened."""
    depth = 1
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return text[:at]
    return text
