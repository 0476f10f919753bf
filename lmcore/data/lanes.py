"""Sixty-four bytes of text at a time: what numba has no words for, written in LLVM's own.

LLVM makes of them whatever the processor has: AVX-512, AVX2, NEON, or plain instructions. Arrays must have
64 elements of room behind the last that is asked for. Each is called by compiled code alone
(``lmcore.data.compiled``); numba and llvmlite, which take a second to import, are needed when it is compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

LANES = 64


class Intrinsic:
    """A function that LLVM's builder writes.

    Args:
        arrays: How many pairs of an array and a place in it come first.
        numbers: How many numbers follow.
        returns: Name of numba's type of the result.
        build: Gets the builder, llvmlite's ``ir``, a pointer to each array's element and the numbers.
    """

    def __init__(self, arrays: int, numbers: int, returns: str, build: Callable[..., Any]) -> None:
        self._arrays, self._numbers, self._returns, self._build = arrays, numbers, returns, build

    def __call__(self, *arguments: Any) -> Any:
        """Not here: only what is compiled can call it."""
        raise TypeError("only compiled functions can call this")

    @functools.cached_property
    def dispatcher(self) -> Any:
        """numba's form of it."""
        from llvmlite import ir
        from numba import types
        from numba.core import cgutils
        from numba.extending import intrinsic

        returns = getattr(types, self._returns)

        def typed(*kinds: Any) -> Any:
            def code(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
                pointers = []
                for i in range(0, 2 * self._arrays, 2):
                    array = context.make_array(signature.args[i])(context, builder, arguments[i])
                    pointers.append(cgutils.gep(builder, array.data, arguments[i + 1]))
                found = self._build(builder, ir, *pointers, *arguments[2 * self._arrays :])
                return context.get_dummy_value() if found is None else found

            return returns(*kinds), code

        # numba asks for a function with exactly as many arguments.
        names = ", ".join(f"a{i}" for i in range(2 * self._arrays + self._numbers))
        scope: dict[str, Any] = {"typed": typed}
        exec(f"def written(typing, {names}): return typed({names})", scope)  # noqa: S102
        return intrinsic(scope["written"])


def in_ranges(*ranges: tuple[int, int]) -> Intrinsic:
    """``f(data, i)``: which of the bytes from ``i`` on are in one of ``ranges``, ends included; uint64."""

    def build(builder: Any, ir: Any, pointer: Any) -> Any:
        block = _load(builder, ir, pointer)
        tests = [
            builder.icmp_unsigned("<=", builder.sub(block, _splat(ir, first)), _splat(ir, last - first))
            for first, last in ranges
        ]
        return _mask(builder, ir, tests)

    return Intrinsic(1, 0, "uint64", build)


def begins(*phrases: bytes) -> Intrinsic:
    """``f(data, i)``: at which of the bytes from ``i`` on one of ``phrases`` begins, in any case; uint64."""

    def build(builder: Any, ir: Any, pointer: Any) -> Any:
        blocks = [
            _load(builder, ir, builder.gep(pointer, [ir.Constant(ir.IntType(64), k)]))
            for k in range(max(map(len, phrases)))
        ]
        folded = [builder.or_(block, _splat(ir, 0x20)) for block in blocks]

        def stands(k: int, byte: int) -> Any:
            block = folded[k] if chr(byte).islower() and byte < 0x80 else blocks[k]
            return builder.icmp_unsigned("==", block, _splat(ir, byte))

        tests = []
        for phrase in phrases:
            letters = [stands(k, byte) for k, byte in enumerate(phrase)]
            tests.append(functools.reduce(builder.and_, letters))
        return _mask(builder, ir, tests)

    return Intrinsic(1, 0, "uint64", build)


def _equal(builder: Any, ir: Any, pointer: Any, byte: Any) -> Any:
    byte = _every(builder, ir, builder.trunc(byte, ir.IntType(8)), LANES)
    return _mask(builder, ir, [builder.icmp_unsigned("==", _load(builder, ir, pointer), byte)])


def _copy(builder: Any, ir: Any, to: Any, of: Any) -> None:
    block = _load(builder, ir, of)
    builder.store(block, builder.bitcast(to, ir.PointerType(block.type)), align=1)


def _count_up(builder: Any, ir: Any, to: Any, first: Any) -> None:
    lanes = ir.VectorType(ir.IntType(32), LANES)
    number = builder.trunc(first, ir.IntType(32))
    numbers = builder.add(_every(builder, ir, number, LANES), ir.Constant(lanes, list(range(LANES))))
    builder.store(numbers, builder.bitcast(to, ir.PointerType(lanes)), align=4)


def _eight(builder: Any, ir: Any, pointer: Any) -> Any:
    word = ir.IntType(64)
    return builder.load(builder.bitcast(pointer, ir.PointerType(word)), align=1, typ=word)


def _folded(builder: Any, ir: Any, a: Any, b: Any) -> Any:
    wide = ir.IntType(128)
    product = builder.mul(builder.zext(a, wide), builder.zext(b, wide))
    upper = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), a.type)
    return builder.xor(upper, builder.trunc(product, a.type))


def _lower(builder: Any, ir: Any, least: Any, factors: Any, shifts: Any, numbers: Any) -> None:
    word = ir.IntType(64)
    lanes = ir.VectorType(word, MINIMA)
    to, *others = (builder.bitcast(pointer, ir.PointerType(lanes)) for pointer in (least, factors, shifts))
    found, factor, shift = (builder.load(pointer, align=8, typ=lanes) for pointer in (to, *others))
    for k in range(NUMBERS):
        number = builder.load(builder.gep(numbers, [ir.Constant(word, k)]), align=8, typ=word)
        value = builder.add(builder.mul(factor, _every(builder, ir, number, MINIMA)), shift)
        found = builder.select(builder.icmp_unsigned("<", value, found), value, found)
    builder.store(found, to, align=8)


def _every(builder: Any, ir: Any, number: Any, lanes: int) -> Any:
    """``lanes`` times ``number``."""
    some = ir.Constant(ir.VectorType(number.type, lanes), None)
    some = builder.insert_element(some, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(some, some, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


MINIMA, NUMBERS = 16, 8
# (least, i, factors, j, shifts, k, numbers, l): 16 minima, lowered to factor * number + shift of 8 numbers
lower_minima = Intrinsic(4, 0, "void", _lower)
equal64 = Intrinsic(1, 1, "uint64", _equal)  # (data, i, byte): which of the bytes from i on are the byte
copy64 = Intrinsic(2, 0, "void", _copy)  # (to, i, of, j): 64 bytes
count64 = Intrinsic(1, 1, "void", _count_up)  # (to, i, first): 64 numbers of 32 bits, first and up
eight_at = Intrinsic(1, 0, "uint64", _eight)  # (data, i): 8 bytes, the first the lowest
trailing_zeros = Intrinsic(
    0, 1, "uint64", lambda builder, ir, bits: builder.cttz(bits, ir.Constant(ir.IntType(1), 0))
)
folded = Intrinsic(0, 2, "uint64", _folded)  # (a, b): the halves of their product, one on the other
ones = Intrinsic(0, 1, "uint64", lambda builder, ir, bits: builder.ctpop(bits))


def _load(builder: Any, ir: Any, pointer: Any) -> Any:
    lanes = ir.VectorType(ir.IntType(8), LANES)
    return builder.load(builder.bitcast(pointer, ir.PointerType(lanes)), align=1, typ=lanes)


def _splat(ir: Any, byte: int) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(8), LANES), [byte] * LANES)


def _mask(builder: Any, ir: Any, tests: list[Any]) -> Any:
    return builder.bitcast(functools.reduce(builder.or_, tests), ir.IntType(64))
