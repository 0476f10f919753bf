import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.data.token_writer import TokenWriter
from lmcore.data.tokens import TokenDataset
from lmcore.errors import DataError

EOS = 0
VOCAB = 1_000


def documents(count, seed=0, longest=60):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, longest, count)
    return [np.append(rng.integers(1, VOCAB, size), EOS).astype(np.int32) for size in sizes]


def write(directory, docs, batch=7, **options):
    with TokenWriter(directory, eos_id=EOS, vocab_size=VOCAB, **options) as writer:
        for start in range(0, len(docs), batch):
            part = docs[start : start + batch]
            names = [f"s:{start + i}" for i in range(len(part))]
            lengths = np.array([len(doc) for doc in part])
            writer.add(names, ["s"] * len(part), np.concatenate(part), lengths, num_bytes=10 * len(part))
    return TokenDataset(directory)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """120 documents over 3 files of several row groups, one of them larger than a row group."""
    docs = documents(120)
    docs[50] = np.append(np.full(700, 5), EOS).astype(np.int32)
    directory = tmp_path_factory.mktemp("tokens")
    write(directory, docs, row_group_tokens=200, file_tokens=1_500)
    return directory, docs


def test_the_schema_is_the_one_that_was_agreed(written):
    for path in sorted(written[0].glob("*.parquet")):
        schema = pq.read_schema(path)
        kinds = {field.name: (str(field.type), field.nullable) for field in schema}
        assert kinds == {
            "doc_id": ("string", False),
            "source": ("string", False),
            "n_tokens": ("int32", False),
            "input_ids": ("list<element: int32 not null>", False),
        }


def test_input_ids_are_plain_uncompressed_pages_without_dictionary_or_statistics(written):
    paths = sorted(written[0].glob("*.parquet"))
    assert len(paths) > 2
    for path in paths:
        metadata = pq.read_metadata(path)
        for i in range(metadata.num_row_groups):
            column = metadata.row_group(i).column(3)
            assert column.compression == "UNCOMPRESSED"
            assert set(column.encodings) == {"PLAIN", "RLE"}
            assert not column.has_dictionary_page
            assert column.statistics is None


def test_the_payload_is_where_the_index_says(written):
    directory, docs = written
    found: list[np.ndarray] = []
    index = json.loads((directory / "index.json").read_text())
    for file in index["files"]:
        raw = (directory / file["name"]).read_bytes()
        found += [
            np.frombuffer(raw, "<i4", group["num_values"], group["payload_offset"])
            for group in file["row_groups"]
        ]
    assert (np.concatenate(found) == np.concatenate(docs)).all()
    assert sum(file["num_rows"] for file in index["files"]) == index["num_documents"] == len(docs)
    assert index["num_bytes"] == 10 * len(docs)
    assert (index["eos_id"], index["vocab_size"]) == (EOS, VOCAB)


def test_any_tool_reads_the_same_rows(written):
    directory, docs = written
    table = pa.concat_tables([pq.read_table(path) for path in sorted(directory.glob("*.parquet"))])
    assert table["input_ids"].to_pylist() == [doc.tolist() for doc in docs]
    assert table["n_tokens"].to_pylist() == [len(doc) for doc in docs]


def test_rows_are_documents(written):
    directory, docs = written
    dataset = TokenDataset(directory)
    assert dataset.num_documents == len(docs)
    assert len(dataset) == dataset.num_tokens == sum(map(len, docs))
    assert dataset.document_offsets.dtype == np.int64
    for i in (0, 50, 119):
        assert (dataset.document(i) == docs[i]).all()
    assert dataset.doc_id(0) == "s:0"
    assert [dataset.doc_id(i) for i in range(120)] == [f"s:{i}" for i in range(120)]
    with pytest.raises(IndexError):
        dataset.doc_id(120)


def test_each_document_has_a_source(tmp_path):
    docs, sources = documents(40), [("web", "books", "code")[i % 7 % 3] for i in range(40)]
    with TokenWriter(tmp_path, eos_id=EOS, vocab_size=VOCAB, row_group_tokens=99, file_tokens=400) as writer:
        writer.add(sources, sources, np.concatenate(docs), np.array([len(doc) for doc in docs]), 1)
    assert len(list(tmp_path.glob("*.parquet"))) > 2
    names, numbers = TokenDataset(tmp_path).document_sources()
    assert names == ["books", "code", "web"]
    assert [names[i] for i in numbers] == sources


@given(st.data())
def test_a_slice_is_that_of_the_concatenation(written, data):
    directory, docs = written
    whole = np.concatenate(docs)
    dataset = TokenDataset(directory)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    found = dataset.slice(start, stop)
    assert found.dtype == np.int32
    assert found.flags.owndata
    assert found.flags.writeable
    assert (found == whole[start:stop]).all()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=40),
    st.integers(1, 60),
    st.integers(1, 200),
    st.integers(1, 9),
)
def test_what_was_written_is_read_for_any_sizes(tmp_path_factory, sizes, group, file, batch):
    docs = [np.append(np.full(size, i % 999 + 1), EOS).astype(np.int32) for i, size in enumerate(sizes)]
    directory = tmp_path_factory.mktemp("t")
    dataset = write(directory, docs, batch, row_group_tokens=group, file_tokens=file)
    assert (dataset.slice(0, dataset.num_tokens) == np.concatenate(docs)).all()
    assert [dataset.doc_id(i) for i in range(len(docs))] == [f"s:{i}" for i in range(len(docs))]
    dataset.verify()


def test_the_digest_is_of_the_tokens(tmp_path):
    docs = documents(20)
    first = write(tmp_path / "a", docs)
    assert write(tmp_path / "b", docs, batch=3).digest == first.digest
    docs[3][0] += 1
    assert write(tmp_path / "c", docs).digest != first.digest


def test_a_dataset_travels_to_another_process(written):
    dataset = TokenDataset(written[0])
    dataset.slice(0, 10)
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - its own bytes
    assert copy.digest == dataset.digest
    assert (copy.slice(5, 900) == dataset.slice(5, 900)).all()


# --- files by other writers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zstd", "row_group_size": 13, "data_page_size": 64},
        {"use_dictionary": False, "data_page_version": "2.0", "row_group_size": 50},
        {"compression": "none", "use_dictionary": False, "write_statistics": False},
    ],
)
@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.uint16())])
def test_files_by_another_writer_are_read_too(tmp_path, options, kind):
    docs = documents(60, seed=1)
    for i, part in enumerate((docs[:40], docs[40:])):
        table = pa.table({"input_ids": pa.array([doc.tolist() for doc in part], kind)})
        pq.write_table(table, tmp_path / f"part-{i}.parquet", **options)
    dataset = TokenDataset(tmp_path)
    whole = np.concatenate(docs)
    assert (dataset.slice(0, len(whole)) == whole).all()
    assert (dataset.slice(700, 1_200) == whole[700:1_200]).all()
    assert dataset.eos_id == EOS
    assert dataset.num_bytes == 0
    assert len({dataset.doc_id(i) for i in range(60)}) == 60
    dataset.verify()


def test_our_files_are_read_without_their_index(written, tmp_path):
    directory, docs = written
    for path in directory.glob("*.parquet"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    dataset = TokenDataset(tmp_path)
    assert (dataset.slice(0, dataset.num_tokens) == np.concatenate(docs)).all()
    assert dataset.doc_id(7) == "s:7"


def test_a_file_without_tokens_is_refused(tmp_path):
    with pytest.raises(DataError, match="no tokens in"):
        TokenDataset(tmp_path)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="expected a column input_ids"):
        TokenDataset(tmp_path)


# --- damage ----------------------------------------------------------------------------------------


def flip(path, position):
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(bytes(raw))


def test_any_flipped_bit_of_the_data_is_found_when_asked(tmp_path):
    write(tmp_path, documents(30))
    path = tmp_path / "00000.parquet"
    clean = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in [4, 5, *rng.integers(4, len(clean) - 8, 60)]:
        flip(path, int(position))
        try:
            dataset = TokenDataset(tmp_path)
            dataset.verify()
        except DataError:
            pass
        else:
            # Parquet's footer holds notes (the writer's name) and its pages' checksums no others.
            assert pq.read_table(path).equals(pq.read_table(pa.BufferReader(clean))), position
        path.write_bytes(clean)


@pytest.mark.parametrize("left", [0, 3, 500, -1])
def test_a_truncated_file_is_refused_when_it_is_opened(tmp_path, left):
    write(tmp_path, documents(30))
    path = tmp_path / "00000.parquet"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DataError, match=r"00000\.parquet is damaged"):
        TokenDataset(tmp_path)


def test_an_index_that_does_not_fit_is_refused(tmp_path):
    write(tmp_path / "a", documents(30, seed=1))
    write(tmp_path / "b", documents(30, seed=2))
    (tmp_path / "a" / "00000.parquet").write_bytes((tmp_path / "b" / "00000.parquet").read_bytes())
    with pytest.raises(DataError, match="is damaged"):
        TokenDataset(tmp_path / "a")
    (tmp_path / "b" / "index.json").write_text("{")
    with pytest.raises(DataError, match=r"index\.json is damaged"):
        TokenDataset(tmp_path / "b")


def test_a_missing_file_is_refused(tmp_path):
    write(tmp_path, documents(5))
    (tmp_path / "00000.parquet").unlink()
    with pytest.raises(DataError, match="is damaged"):
        TokenDataset(tmp_path)


# --- the writer refuses ----------------------------------------------------------------------------


def add(directory, tokens, lengths):
    with TokenWriter(directory, eos_id=EOS, vocab_size=VOCAB) as writer:
        names = [str(i) for i in range(len(lengths))]
        writer.add(names, names, np.array(tokens, np.int32), np.array(lengths), 1)


@pytest.mark.parametrize(
    ("tokens", "lengths"), [([1, 2], [2]), ([1, EOS, 2], [2]), ([EOS], [1, 0]), ([VOCAB, EOS], [2])]
)
def test_documents_without_end_and_unknown_tokens_are_refused(tmp_path, tokens, lengths):
    with pytest.raises(DataError):
        add(tmp_path, tokens, lengths)
    assert not (tmp_path / "index.json").exists()


def test_ranges_outside_the_split_are_refused(written):
    dataset = TokenDataset(written[0])
    for start, stop in ((-1, 3), (5, 4), (0, dataset.num_tokens + 1)):
        with pytest.raises(DataError, match="expected a range inside"):
            dataset.slice(start, stop)


def foreign(directory, rows, **columns):
    directory.mkdir()
    table = pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32())), **columns})
    pq.write_table(table, directory / "a.parquet")
    return directory


def test_files_by_others_are_taken_by_what_they_hold(tmp_path):
    rows = [[], [1, 2, EOS], None, [3, EOS]]
    dataset = TokenDataset(foreign(tmp_path / "a", rows, n_tokens=pa.array([3, None, 0, 2])))
    assert dataset.eos_id == EOS
    assert dataset.num_documents == 4
    assert dataset.document(1).tolist() == [1, 2, EOS]
    assert dataset.document(3).tolist() == [3, EOS]
    other = TokenDataset(foreign(tmp_path / "b", [[], [2, 1, EOS], None, [3, EOS]]))
    assert dataset.digest != other.digest
    with pytest.raises(DataError, match="no token"):
        TokenDataset(foreign(tmp_path / "c", [[], None]))


def test_sources_of_files_by_others_are_read_where_there_are_any(tmp_path):
    rows = [[1, EOS], [], [2, EOS]]
    for i, kind in enumerate((pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string()))):
        column = pa.array(["b", "a", "b"], kind)
        names, numbers = TokenDataset(foreign(tmp_path / str(i), rows, source=column)).document_sources()
        assert [names[n] for n in numbers] == ["b", "a", "b"]
    for name, columns in (("none", {}), ("null", {"source": pa.array(["a", None, "b"])})):
        dataset = TokenDataset(foreign(tmp_path / name, rows, **columns))
        with pytest.raises(DataError, match="which source each document is of"):
            dataset.document_sources()


@pytest.mark.parametrize("index", ["{}", "[]", "3", '{"files": []}'])
def test_an_index_that_is_none_is_refused(tmp_path, index):
    directory = foreign(tmp_path / "a", [[1, EOS]])
    (directory / "index.json").write_text(index)
    with pytest.raises(DataError, match="not a table of"):
        TokenDataset(directory)
