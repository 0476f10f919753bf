"""Differential fuzzers: random inputs, ours against an independent implementation.

Each fuzzer takes a seeded generator and an empty folder, and raises ``AssertionError`` where the two differ.
A round is small, so a failing seed is a small case.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from lmcore.config import DataConfig, LimitsConfig, ModelConfig, SourceConfig, TextConfig, TokenizerConfig
from lmcore.data.cleaning import clean_texts
from lmcore.data.encoding import Encoder
from lmcore.data.records import Quarantined, Record, read_records
from lmcore.data.sources import SourceFile, take_inventory
from lmcore.data.text import clean
from lmcore.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

Fuzzer = Callable[[random.Random, Path], None]
FUZZERS: dict[str, Fuzzer] = {}

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Each is near an edge of some reader: escapes, joiners, line ends that JSON does not know, astral characters.
PIECES = (
    *(
        "the mill",
        " ",
        "  ",
        "stone\n",
        "\r\n",
        "\t",
        "é",
        "e\u0301",
        "日本語",
        "ไทย",
        "\u200b",
        "\u2028",
        "\x85",
        "\ufeff",
    ),
    *(
        '"',
        "\\",
        "\\u00e9",
        "/",
        "{",
        "}",
        "[]",
        "\x00",
        "\x1b",
        "\x7f",
        "\ufffd",
        "🙂",
        "👩\u200d🔬",
        "\U0010ffff",
        "\U000e0001",
    ),
    *(
        "Ã©",
        "â€™",
        "Â ",
        "\u00ad",
        "<|endoftext|>",
        "<p>x</p>",
        "1234567",
        "0.5e-3",
        "don't",
        "    ",
        "\n\n\n",
        "ﬁ",
        "\u1100\u1161",
    ),
)


def fuzzer(function: Fuzzer) -> Fuzzer:
    """Register ``function`` under its name."""
    FUZZERS[function.__name__] = function
    return function


def draw_text(draw: random.Random, longest: int = 30) -> str:
    """A text of up to ``longest`` pieces; one in eight also has any code points, surrogates excepted."""
    pieces = draw.choices(PIECES, k=draw.randint(0, longest))
    if draw.random() < 1 / 8:
        codes = [draw.randrange(0x110000) for _ in range(draw.randint(1, 8))]
        pieces += [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
        draw.shuffle(pieces)
    return "".join(pieces)


def read(path: Path, **options: Any) -> list[Record | Quarantined]:
    """The records of one local file."""
    raw = path.read_bytes()
    file = SourceFile("s", str(path), path.name, len(raw), hashlib.sha256(raw).hexdigest())
    source = SourceConfig(name="s", kind="files", path=str(path), **options)
    limits = LimitsConfig(max_expansion=1e9)
    found = list(read_records(file, source, limits))
    fast = list(read_records(file, source, limits, as_bytes=True))
    assert [text_or_none(entry) for entry in fast] == [text_or_none(entry) for entry in found]
    return found


def text_or_none(entry: Record | Quarantined) -> str | None:
    """The text of a record; None for one that was quarantined."""
    if isinstance(entry, Quarantined):
        return None
    return entry.text.decode() if isinstance(entry.text, bytes) else entry.text


# --- readers ---------------------------------------------------------------------------------------


@fuzzer
def json_lines(draw: random.Random, folder: Path) -> None:
    """JSON lines, plain or compressed, whole or spoilt, against ``json``."""
    lines = [_json_line(draw) for _ in range(draw.randint(0, 12))]
    raw = draw.choice((b"\n", b"\n", b"\r\n")).join(lines) + draw.choice((b"", b"\n"))
    suffix, pack = draw.choice(
        (
            (".jsonl", bytes),
            (".json", bytes),
            (".jsonl.gz", gzip.compress),
            (".jsonl.zst", zstandard.compress),
        )
    )
    cut = draw.randint(0, len(raw))
    path = folder / f"a{suffix}"
    path.write_bytes(pack(raw) if suffix in (".jsonl", ".json") else pack(raw[:cut]) + pack(raw[cut:]))
    expected = [_reference_line(line) for line in raw.split(b"\n") if _is_line(line)]
    assert [text_or_none(entry) for entry in read(path)] == expected


def _json_line(draw: random.Random) -> bytes:
    record: dict[str, Any] = {"text": draw_text(draw)}
    for _ in range(draw.randint(0, 3)):
        record[draw.choice(("id", "meta", "Text", "text ", "text\\", "é"))] = draw.choice(
            (None, True, 10**30, -0.5, [1, {"text": "no"}], {"text": "no"}, draw_text(draw, 3))
        )
    if draw.random() < 0.1:
        record["text"] = draw.choice((None, 5, ["a"], {"a": "b"}))
    items = list(record.items())
    draw.shuffle(items)
    raw = json.dumps(
        dict(items), ensure_ascii=draw.random() < 0.3, separators=draw.choice(((",", ":"), (" , ", " : ")))
    ).encode()
    if draw.random() < 0.15:
        raw = _spoil(draw, raw)
    return draw.choice((b"", b"", b" ", b"\t")) + raw + draw.choice((b"", b"", b"  "))


def _spoil(draw: random.Random, raw: bytes) -> bytes:
    place = draw.randrange(len(raw) + 1)
    odd = draw.choice((b"\xff", b"\xc3", b"\x00", b'"', b"}", b"\\", b"\xed\xa0\x80", b""))
    return raw[:place] + odd + raw[draw.choice((place, len(raw))) :]


def _is_line(line: bytes) -> bool:
    return bool(line.removeprefix(BYTE_ORDER_MARK).strip())


def _reference_line(line: bytes) -> str | None:
    try:
        record = json.loads(line.removeprefix(BYTE_ORDER_MARK).decode("utf-8"))
    except ValueError:
        return None
    text = record.get("text") if isinstance(record, dict) else None
    return text if isinstance(text, str) else None


@fuzzer
def charsets(draw: random.Random, folder: Path) -> None:
    """Files of any character set, marked or as set, plain or compressed, against Python's codecs."""
    name, mark = draw.choice(CHARSETS)
    texts = [draw_text(draw, 8).encode(name, "ignore").decode(name) for _ in range(draw.randint(1, 6))]
    encoding = draw.choice(("auto", name)) if mark else name
    end = draw.choice(("\n", "\r\n", "\r"))
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + end for text in texts)
    pack = draw.choice((("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)))
    path = folder / f"a.jsonl{pack[0]}"
    path.write_bytes(pack[1]((mark + lines.encode(name)) * 2))
    assert [text_or_none(entry) for entry in read(path, encoding=encoding)] == texts * 2
    whole = folder / "a.txt"
    raw = mark + texts[0].encode(name)
    whole.write_bytes(raw)
    expected = _without_marks(raw.decode(name))
    assert [text_or_none(entry) for entry in read(whole, encoding=encoding)] == [expected]


CHARSETS = (
    ("utf-8", codecs.BOM_UTF8),
    ("utf-16-le", codecs.BOM_UTF16_LE),
    ("utf-16-be", codecs.BOM_UTF16_BE),
    ("utf-32-le", codecs.BOM_UTF32_LE),
    ("utf-32-be", codecs.BOM_UTF32_BE),
    *((name, b"") for name in ("cp1252", "shift_jis", "gb18030", "koi8-r", "cp500", "euc-kr", "big5")),
)


@fuzzer
def parquet(draw: random.Random, folder: Path) -> None:
    """Parquet of any string type, layout and codec, against ``pyarrow``."""
    kinds = (
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    )
    kind = draw.choice(kinds)
    values = [None if draw.random() < 0.1 else draw_text(draw) for _ in range(draw.randint(0, 40))]
    given = [value.encode() if value is not None and pa.types.is_binary(kind) else value for value in values]
    options = {
        "row_group_size": draw.choice((1, 7, 1000)),
        "compression": draw.choice(("none", "snappy", "zstd", "gzip")),
        "use_dictionary": draw.random() < 0.5,
        "data_page_version": draw.choice(("1.0", "2.0")),
        "write_page_checksum": draw.random() < 0.5,
    }
    path = folder / "a.parquet"
    pq.write_table(pa.table({"n": list(range(len(values))), "text": pa.array(given, kind)}), path, **options)
    expected = pq.read_table(path)["text"].to_pylist()
    expected = [value.decode() if isinstance(value, bytes) else value for value in expected]
    assert [text_or_none(entry) for entry in read(path)] == expected


@fuzzer
def zip_archives(draw: random.Random, folder: Path) -> None:
    """Text files inside a zip archive behind a wildcard, against ``zipfile``."""
    path = folder / "a.zip"
    with zipfile.ZipFile(path, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for number in range(draw.randint(1, 5)):
            archive.writestr(f"in/{number}.txt", draw_text(draw) + "end")
    source = SourceConfig(name="s", kind="files", path=f"zip://in/*.txt::{path}")
    found = {}
    for file in take_inventory(DataConfig(sources=(source,))).files:
        (record,) = read_records(file, source, LimitsConfig())
        found[file.name.rpartition("/")[2]] = text_or_none(record)
    with zipfile.ZipFile(path) as archive:
        expected = {name.rpartition("/")[2]: archive.read(name).decode() for name in archive.namelist()}
    assert found == {name: _without_marks(text) for name, text in expected.items()}


def _without_marks(text: str) -> str:
    """A file without byte order marks at its start, and those that ``cat`` leaves at the start of lines."""
    kept = "" if text.startswith("\ufeff") else "\ufeff"
    return text.lstrip("\ufeff").replace("\n\ufeff", "\n").replace("\ufeff", kept)


@fuzzer
def web_archives(draw: random.Random, folder: Path) -> None:
    """Archives of plain text pages, against ``fastwarc``: as many responses, and the same bodies."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    raw = b"".join(_warc_records(draw))
    path = folder / draw.choice(("a.warc", "a.warc.gz"))
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    found = ArchiveIterator(io.BytesIO(raw), record_types=WarcRecordType.response, parse_http=True)
    expected = [record.reader.read().decode() for record in found]
    assert [text_or_none(entry) for entry in read(path)] == expected


def _warc_records(draw: random.Random) -> Iterator[bytes]:
    for number in range(draw.randint(1, 6)):
        body = draw_text(draw).replace("\x00", "").replace("\ufffd", "").removeprefix("\ufeff").encode()
        http = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + body
        fields = [
            ("WARC-Type", draw.choice(("response", "response", "request", "metadata"))),
            ("WARC-Target-URI", f"https://mill.example/{number}"),
            ("Content-Type", "application/http; msgtype=response"),
            ("Content-Length", str(len(http))),
        ]
        draw.shuffle(fields)
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        yield f"WARC/{draw.choice(('1.0', '1.1'))}\r\n{head}\r\n".encode() + http + b"\r\n\r\n"


# --- text and tokens -------------------------------------------------------------------------------


@fuzzer
def cleaning(draw: random.Random, folder: Path) -> None:
    """A batch cleaned by compiled code, against each text alone in plain Python."""
    texts = [draw_text(draw) for _ in range(draw.randint(1, 20))]
    texts = [text + chr(draw.randrange(0xD800, 0xE000)) if draw.random() < 0.05 else text for text in texts]
    config = TextConfig(repair_mojibake=draw.random() < 0.5, drop_zero_width=draw.random() < 0.5)
    assert clean_texts(texts, config).to_pylist() == [clean(text, config) for text in texts]


@fuzzer
def encoders(draw: random.Random, folder: Path) -> None:
    """Our encoder by the fast engine, against ``tokenizers`` alone; decoded, the tokens are the text."""
    pattern = draw.choice(("gpt2", "cl100k", "llama3"))
    encoder, reference = _encoders(pattern)
    texts = [draw_text(draw) for _ in range(draw.randint(1, 20))]
    tokens, lengths = encoder.encode(texts)
    expected = [reference.encode(text, add_special_tokens=False).ids for text in texts]
    assert [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])] == expected
    assert [reference.decode(ids, skip_special_tokens=False) for ids in expected] == texts


@cache
def _encoders(pattern: Any) -> tuple[Encoder, Any]:
    import tempfile

    draw = random.Random(0)
    texts = [draw_text(draw) for _ in range(300)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tokenizer(train_tokenizer(TokenizerConfig(vocab_size=500, pattern=pattern), texts), folder)
        encoder = Encoder(folder, sample=texts[:20])
        assert encoder.engine == "gigatoken", encoder.reason
        return encoder, load_tokenizer(folder)


# --- models ----------------------------------------------------------------------------------------


@fuzzer
def exports(draw: random.Random, folder: Path) -> None:
    """A random small model of ours, against ``transformers`` on its exported directory: the same logits."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from lmcore.model.hf.export import export
    from lmcore.model.transformer import Transformer

    logging.disable_progress_bar()
    config = _model(draw)
    ours = Transformer(config, 64).eval()
    ours.init_weights(draw.randrange(1000))
    export(folder / "out", ours.named_parameters(), config, 64)
    theirs = AutoModelForCausalLM.from_pretrained(folder / "out").eval()
    tokens = torch.tensor([[draw.randrange(64) for _ in range(draw.randint(1, 24))]])
    with torch.no_grad():
        assert (ours(tokens) - theirs(tokens).logits).abs().max().item() < 1e-4


def _model(draw: random.Random) -> ModelConfig:
    heads = draw.choice((2, 4))
    return ModelConfig(
        num_layers=draw.randint(1, 3),
        hidden_size=draw.choice((16, 32)),
        num_heads=heads,
        num_kv_heads=draw.choice([size for size in (1, 2, 4) if heads % size == 0]),
        max_seq_len=32,
        activation="swiglu",
        qk_norm=False,
        tie_embeddings=draw.random() < 0.5,
        zero_init_projections=False,
    )
