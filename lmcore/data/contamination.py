"""Text of evaluation sets in documents: word n-grams that both hold (Brown et al. 2020, appendix C).

Words are those of near duplicates (``lmcore.data.minhash``): runs of letters and digits in lower case, any
number being 0, and in scripts without spaces those that are found there. An item with fewer words than an
n-gram has none, and is counted as not looked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from lmcore.config import DataConfig
from lmcore.data.arrow import text_array
from lmcore.data.privacy import mask_texts, masks
from lmcore.data.records import Record, read_records, text_of
from lmcore.data.sources import SourceFile
from lmcore.data.text import clean
from lmcore.errors import DataError

_ITEMS_AT_A_TIME = 10_000


@dataclass(frozen=True)
class Evaluated:
    """What evaluation sets hold.

    Attributes:
        hashes: Of their n-grams, distinct; uint64 [n].
        items: Records of the sets.
        too_short: Those without an n-gram.
    """

    hashes: np.ndarray
    items: int
    too_short: int


def read_evaluation_sets(config: DataConfig, files: Iterable[SourceFile]) -> Evaluated:
    """Hash the n-grams of every record of ``files``, which belong to ``config.decontamination.sources``.

    Raises:
        DataError: a record cannot be read.
    """
    from lmcore.data.minhash import ngram_hashes  # the compiler takes a third of a second to import

    size = config.decontamination.ngram_words
    parts, items, too_short = [np.empty(0, np.uint64)], 0, 0
    for texts in _batches(_texts(config, files)):
        hashes, counts = ngram_hashes(text_array(texts), size)
        parts.append(hashes)
        items += len(texts)
        too_short += int((counts == 0).sum())
    return Evaluated(np.unique(np.concatenate(parts)), items, too_short)


def count_shared(texts: pa.Array, table: Path, size: int, breaks: np.ndarray | None = None) -> np.ndarray:
    """N-grams of each of ``texts`` (``pa.large_string``) that are in ``table``; float64 [n].

    Args:
        texts: Documents.
        table: File of hashes (``Evaluated.hashes``), written by numpy.
        size: Words of an n-gram.
        breaks: ``segments.word_breaks`` of ``texts``, if known.
    """
    from lmcore.data.minhash import ngram_hashes

    wanted = np.load(table)
    hashes, counts = ngram_hashes(texts, size, breaks)
    places = np.minimum(np.searchsorted(wanted, hashes), max(0, len(wanted) - 1))
    found = (wanted[places] == hashes) if len(wanted) else np.zeros(len(hashes), bool)
    totals = np.r_[0, np.cumsum(found)]
    ends = np.cumsum(counts)
    return (totals[ends] - totals[ends - counts]).astype(np.float64)


def _texts(config: DataConfig, files: Iterable[SourceFile]) -> Iterable[str]:
    sources = {source.name: source for source in config.decontamination.sources}
    masking = masks(config.privacy)
    for file in files:
        for record in read_records(file, sources[file.source], config.limits):
            if not isinstance(record, Record):
                raise DataError(
                    f"evaluation set {file.source!r} has a record that cannot be read",
                    expected="every record, so that none is learned",
                    found=f"{file.name} record {record.index}: {record.reason}",
                    remedy="Mend the file.",
                )
            # As documents are: what was masked there must look the same here.
            text = clean(text_of(record), config.text)
            yield mask_texts(text_array([text]), config.privacy, Counter())[0].as_py() if masking else text


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _ITEMS_AT_A_TIME:
            yield batch
            batch = []
    if batch:
        yield batch
