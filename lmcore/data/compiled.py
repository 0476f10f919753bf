"""Functions that look at every byte: compiled by numba once, and loaded as machine code ever after.

Starting numba takes a second, more than most corpora need to be measured. So what it compiled is kept as
object code that LLVM alone loads, in 20 ms. It is made again for other sources, versions or processors.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import io
import itertools
import json
import os
import platform
import re
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from lmcore.data.lanes import Intrinsic
from lmcore.home import Home

uint32 = np.uint32

_FORMAT = 1
_LOADING = threading.Lock()
_PACKAGE = "lmcore.data."
_IMPORTED = re.compile(r"^\s*from (lmcore\.data\.\w+) import", re.MULTILINE)


class Compiled:
    """A function of arrays, integers and named tuples of them, compiled for each kind of arguments it gets.

    Those that Python calls return nothing: they write into their arrays. They run without the interpreter's
    lock. Arrays must be contiguous, and indices never negative.
    """

    def __init__(self, function: Any, inline: bool) -> None:
        functools.update_wrapper(self, function)
        self.name: str = function.__name__
        self._function = function
        self._inline = inline
        self._loaded: dict[str, Callable[..., int]] = {}

    def __call__(self, *arguments: Any) -> None:
        """Run it; the first call with such arguments loads the code, and the very first makes it."""
        leaves = list(_leaves(arguments))
        kind = ",".join(map(_kind, leaves))
        run = self._loaded.get(kind)
        if run is None:
            with _LOADING:
                run = self._loaded.setdefault(kind, _load(self, kind, arguments))
        result, error = ctypes.c_void_p(), ctypes.c_void_p()
        words = itertools.chain.from_iterable(map(_words, leaves))
        if run(ctypes.byref(result), ctypes.byref(error), *map(ctypes.c_int64, words)):
            raise RuntimeError(f"{self.name} failed: nothing that is compiled here may raise")

    @functools.cached_property
    def dispatcher(self) -> Any:
        """numba's own form of it, for what it calls too; nothing is compiled yet."""
        import numba

        scope = dict(self._function.__globals__)
        for name in self._function.__code__.co_names:
            if isinstance(scope.get(name), (Compiled, Intrinsic)):
                scope[name] = scope[name].dispatcher
        function = FunctionType(self._function.__code__, scope, self.name)
        # Nothing compiled here makes an array, and counting references took three quarters of the time.
        options: dict[str, Any] = {"_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        return numba.njit(error_model="numpy", nogil=True, forceinline=self._inline, **options)(function)

    def object_code(self, arguments: tuple[Any, ...]) -> tuple[str, bytes]:
        """Compile for such ``arguments``; the name of the function, and the object file that it is in."""
        import llvmlite.binding as llvm
        import numba

        signature = tuple(map(numba.typeof, arguments))
        with _indices_from_the_start():
            self.dispatcher.compile(signature)
        found = self.dispatcher.overloads[signature]
        module = llvm.parse_assembly(self.dispatcher.inspect_llvm(signature))
        return found.fndesc.mangled_name, _target().emit_object(module)


def compiled(function: Any) -> Any:
    """Have ``function`` compiled when it is first called, or what was compiled of these sources loaded."""
    return Compiled(function, inline=False)


def inlined(function: Any) -> Any:
    """Have ``function`` compiled into each that calls it: passing a page costs more than most of them do."""
    return Compiled(function, inline=True)


def kept_table(make: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    """Have the table that ``make`` returns made once for these sources, and read ever after."""

    @functools.cache
    def table() -> np.ndarray:
        path = _cache_folder(make.__module__) / f"{make.__module__}.{make.__qualname__}.npy"
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            found = make()
        held = io.BytesIO()
        np.save(held, found, allow_pickle=False)
        _write(path, held.getvalue())
        return found

    return table


def _leaves(arguments: tuple[Any, ...]) -> Iterator[Any]:
    """Arrays and integers, those inside tuples too."""
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _leaves(argument)
        else:
            yield argument


def _kind(leaf: Any) -> str:
    """What numba would know of ``leaf``: another kind is compiled anew."""
    if not isinstance(leaf, np.ndarray):
        return type(leaf).__name__
    if not (leaf.flags.c_contiguous and leaf.flags.aligned):
        raise ValueError("an array that is not contiguous")
    return f"{leaf.dtype.str}{leaf.ndim}{'w' if leaf.flags.writeable else 'r'}"


def _words(leaf: Any) -> tuple[int, ...]:
    """``leaf`` as the arguments that numba's code takes for it (numba.core.datamodel: ArrayModel)."""
    if not isinstance(leaf, np.ndarray):
        return (int(leaf),)
    return (0, 0, leaf.size, leaf.itemsize, leaf.ctypes.data, *leaf.shape, *leaf.strides)


@functools.cache
def _say_once() -> None:
    sys.stderr.write("compiling what reads texts: up to a minute, the first time that it is needed\n")


# --- object code -----------------------------------------------------------------------------------


def _load(function: Compiled, kind: str, arguments: tuple[Any, ...]) -> Callable[..., int]:
    """Load the code for ``arguments``, or make it and keep it."""
    import llvmlite.binding as llvm

    folder = _cache_folder(function.__module__)
    path = folder / f"{function.name}-{hashlib.sha256(kind.encode()).hexdigest()[:16]}"
    kept = _read(path)
    if kept is None:
        _say_once()
        kept = function.object_code(arguments)
        name, code = kept
        about = json.dumps({"name": name, "sha256": hashlib.sha256(code).hexdigest()})
        _write(path, about.encode() + b"\n" + code)
    name, code = kept
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _ENGINES.append(engine)
    count = sum(map(len, map(_words, _leaves(arguments))))
    words = [ctypes.c_int64] * count
    return ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *words)(
        engine.get_function_address(name)
    )


_ENGINES: list[Any] = []  # the code lives as long as they do


def _read(path: Path) -> tuple[str, bytes] | None:
    """Name and code of the file at ``path``; None if there is none, or not as it was written."""
    try:
        head, _, code = path.read_bytes().partition(b"\n")
        about = json.loads(head)
        return (about["name"], code) if hashlib.sha256(code).hexdigest() == about["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, content: bytes) -> None:
    """Keep ``content``; other processes see all of it or nothing. A folder without room keeps none."""
    new = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(content)
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()


@contextlib.contextmanager
def _indices_from_the_start() -> Iterator[None]:
    """Have numba take no index for one that counts from the end: asking each took a tenth of the time."""
    from numba.core import types
    from numba.np import arrayobj

    def as_it_is(context: Any, builder: Any, kind: Any, index: Any, size: Any) -> Any:
        return context.cast(builder, index, kind, types.intp)

    before = arrayobj.fix_integer_index
    arrayobj.fix_integer_index = as_it_is
    try:
        yield
    finally:
        arrayobj.fix_integer_index = before


@functools.cache
def _target() -> Any:
    """The processor of this machine."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        codemodel="jitdefault",
        jit=True,
    )


@functools.cache
def _cache_folder(module: str) -> Path:
    """A folder for exactly the sources that ``module`` is made of, these versions and this processor."""
    import llvmlite.binding as llvm

    here = Path(__file__).parent
    sources = b"".join(path.read_bytes() for path in _sources(module))
    about = [_FORMAT, *map(importlib.metadata.version, ("numba", "llvmlite", "numpy", "ftfy"))]
    about += [platform.python_version(), unicodedata.unidata_version, platform.machine()]
    about += [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    digest = hashlib.sha256(json.dumps(about).encode() + sources).hexdigest()
    base = here / "__pycache__" if os.access(here, os.W_OK) else Home.here().root / "compiled"
    return base / f"compiled-{module.rpartition('.')[2]}-{digest[:16]}"


def _sources(module: str) -> list[Path]:
    """Files of ``lmcore.data`` that ``module`` is made of, sorted: its own and those that they import."""
    here, found, wanted = Path(__file__).parent, set[Path](), {module, __name__}
    while wanted:
        path = here / f"{wanted.pop().removeprefix(_PACKAGE)}.py"
        if path.is_file() and path not in found:
            found.add(path)
            wanted |= set(_IMPORTED.findall(path.read_text(encoding="utf-8")))
    return sorted(found)
