"""Gather files into shards: the units of work, of reuse and of retry.

A shard ends where a hash of a file's name says so, about once in ``target_bytes``, so that a file that comes
or goes changes its own shard and no other; a file of that size or more always ends one. The target follows
the size of the corpus in powers of two, so that there are enough shards to work on side by side, up to
``data.shard_bytes``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lmcore.config import SourceConfig
from lmcore.data.sources import SourceFile, digest_of

SHARDS_WANTED = 128
LEAST_BYTES = 1 << 19


@dataclass
class Shard:
    """Files of one source that are worked on together, in order.

    Attributes:
        source: Where they come from.
        files: Whole files, or parts of large ones.
        generation: 0 for the files that were there first; see ``lmcore.data.growth``.
        num_bytes: Size as stored.
    """

    source: SourceConfig
    generation: int = 0
    files: list[SourceFile] = field(default_factory=list)
    num_bytes: int = 0

    @property
    def digest(self) -> str:
        """Changes with what the files hold and what they are called."""
        return digest_of(self.files)


def target_bytes(files: Iterable[SourceFile], most: int) -> int:
    """Text that a shard should hold, in bytes: at most ``most``."""
    total = sum(file.text_bytes for file in files)
    wanted = 1 << max(0, (total // SHARDS_WANTED).bit_length() - 1)
    return min(most, max(LEAST_BYTES, wanted))


def cut(
    sources: Sequence[SourceConfig], generations: Sequence[Sequence[SourceFile]], shard_bytes: int
) -> list[Shard]:
    """Gather the files of each generation into shards, in order.

    Args:
        sources: Of the files.
        generations: Files in the order of the sources, then by name; those that came later behind.
        shard_bytes: Most text of a shard, but for a single file that holds more.
    """
    by_name = {source.name: source for source in sources}
    shards: list[Shard] = []
    target = target_bytes(generations[0], shard_bytes)
    for number, files in enumerate(generations):
        last: Shard | None = None
        held = 0
        for file in files:
            if last is None or last.source.name != file.source:
                last, held = Shard(by_name[file.source], number), 0
                shards.append(last)
            last.files.append(file)
            last.num_bytes += file.num_bytes
            size = file.text_bytes
            held += size
            if held >= 2 * target or _ends_shard(file, size / target):
                last = None
    return shards


def _ends_shard(file: SourceFile, chance: float) -> bool:
    if chance >= 1:
        return True
    name = f"{file.name}\0{file.start}".encode()
    draw = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") / 2.0**64
    return draw < chance
