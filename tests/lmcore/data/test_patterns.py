import io
import os
import socket
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmcore.config import DataConfig, LimitsConfig, SourceConfig
from lmcore.data.patterns import is_left_behind, match
from lmcore.data.records import read_records, text_of
from lmcore.data.sources import take_inventory
from lmcore.errors import DataError


def inventory(path):
    return take_inventory(DataConfig(sources=(source(path),)))


def source(path):
    return SourceConfig(name="s", kind="files", path=str(path))


def texts(path):
    files = inventory(path).files
    records = [record for file in files for record in read_records(file, source(path), LimitsConfig())]
    return {file.name: text_of(record) for file, record in zip(files, records, strict=True)}


def make(root, *files):
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


# --- hidden names and what is left behind ----------------------------------------------------------


@pytest.mark.parametrize("pattern", ["**/*.txt", "**"])
def test_a_wildcard_takes_no_hidden_file_and_enters_no_hidden_folder(tmp_path, pattern):
    make(tmp_path, "a.txt", "b/c.txt", ".a.txt", "._a.txt", ".git/x.txt", "b/.ipynb_checkpoints/c.txt")
    found = inventory(tmp_path / pattern)
    assert [file.name for file in found.files] == ["a.txt", "b/c.txt"]
    assert found.summary()["passed_over"] == {"s": {"hidden": 4}}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (".*.txt", [".a.txt"]),
        (".a.txt", [".a.txt"]),
        (".hidden/*.txt", ["b.txt"]),
        ("**/.hidden/*.txt", [".hidden/b.txt"]),
        ("*/.c.txt", ["d/.c.txt"]),
    ],
)
def test_a_hidden_file_is_read_where_the_pattern_says_so(tmp_path, pattern, names):
    make(tmp_path, ".a.txt", ".hidden/b.txt", "d/.c.txt", "x.jsonl")
    assert [file.name for file in inventory(tmp_path / pattern).files] == names


@pytest.mark.parametrize(
    "name",
    [
        "__MACOSX/a.txt",
        "__pycache__/a.txt",
        "_temporary/0/a.txt",
        "_delta_log/00.json",
        "lost+found/a.txt",
        "Thumbs.db",
        "desktop.ini",
        "_SUCCESS",
        "a.txt~",
        "#a.txt#",
        "~$a.txt",
        "a.txt.part",
        "a.txt.crdownload",
        "a.jsonl.tmp",
        "a.jsonl.aria2",
        "a.jsonl.gz.filepart",
        "a.txt.bak",
        "DESKTOP.INI",
        "@eaDir/a.txt",
    ],
)
def test_what_other_programs_leave_behind_is_no_data(tmp_path, name):
    make(tmp_path, "a.txt", name)
    found = inventory(tmp_path / "**")
    assert [file.name for file in found.files] == ["a.txt"]
    assert found.summary()["passed_over"] == {"s": {"left by other programs": 1}}


@pytest.mark.parametrize("name", ["part-0.jsonl", "_notes.txt", "tmp.txt", "lock.txt", "a#b.txt", "a~b.txt"])
def test_names_that_only_look_like_it_are_data(name):
    assert not is_left_behind(name)


def test_where_all_is_passed_over_the_error_says_so(tmp_path):
    make(tmp_path, ".a.jsonl", ".b.jsonl")
    with pytest.raises(DataError, match=r"2 hidden, which are passed over.*begin the pattern with a dot"):
        inventory(tmp_path / "*.jsonl")


# --- links -----------------------------------------------------------------------------------------


def test_links_are_followed_as_caches_lay_them(tmp_path):
    make(tmp_path, "blobs/3f", "blobs/9c", "other/deep/d.txt")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "a.txt").symlink_to("../blobs/3f")
    (snapshot / "b.txt").symlink_to(tmp_path / "blobs/9c")
    (snapshot / "folder").symlink_to("../other")
    assert texts(snapshot / "*.txt") == {"a.txt": "blobs/3f", "b.txt": "blobs/9c"}
    assert texts(snapshot / "**/*.txt") == {
        "a.txt": "blobs/3f",
        "b.txt": "blobs/9c",
        "folder/deep/d.txt": "other/deep/d.txt",
    }
    assert list(texts(snapshot / "fol*/deep/d.txt")) == ["folder/deep/d.txt"]


def test_links_in_a_circle_end(tmp_path):
    make(tmp_path, "a/b/c.txt")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/b/here").symlink_to(".")
    assert list(texts(tmp_path / "**/*.txt")) == ["a/b/c.txt"]


@pytest.mark.timeout(30)
def test_folders_that_all_link_to_each_other_are_walked_once(tmp_path):
    folders = [tmp_path / f"d{i}" for i in range(12)]
    for folder in folders:
        folder.mkdir()
        (folder / "a.txt").write_text(folder.name)
    for folder in folders:
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    assert len(texts(tmp_path / "**/*.txt")) == 12


def test_a_file_with_two_names_is_read_once(tmp_path):
    make(tmp_path, "real/a.txt")
    (tmp_path / "link.txt").symlink_to("real/a.txt")
    found = inventory(tmp_path / "**/*.txt")
    assert [file.name for file in found.files] == ["link.txt"]
    assert found.summary()["passed_over"] == {"s": {"links to files that are read already": 1}}


def test_a_link_to_nothing_is_an_error_that_names_both(tmp_path):
    make(tmp_path, "a.txt")
    (tmp_path / "b.txt").symlink_to("gone.txt")
    with pytest.raises(DataError, match=r"link to what is not there, .*b\.txt -> gone\.txt"):
        inventory(tmp_path / "*.txt")


@pytest.mark.parametrize("pattern", ["**/*.txt", "*/*.txt", "p*/**/*.txt"])
def test_a_link_to_a_folder_that_is_not_there_is_counted(tmp_path, pattern):
    make(tmp_path, "part-1/a.txt")
    (tmp_path / "part-2").symlink_to("/mnt/disk-that-is-gone")
    assert inventory(tmp_path / pattern).summary()["passed_over"] == {"s": {"links to what is not there": 1}}


def test_what_is_no_file_is_an_error(tmp_path):
    make(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match=r"cannot be read as a file.*1 others, first .*pipe\.txt"):
        inventory(tmp_path / "*.txt")
    (tmp_path / "pipe.txt").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket.txt"))
        with pytest.raises(DataError, match=r"socket\.txt"):
            inventory(tmp_path / "*.txt")


# --- names with wildcards in them ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("data [v1]/a[1].txt", "data [v1]/a[1].txt"),
        ("data [v1]/a.txt", "data [v1]/*.txt"),
        ("[x]/[y]/a.txt", "[x]/[y]/**/*.txt"),
        ("what?/a*b.txt", "what?/a*b.txt"),
        ("[/a.txt", "[/*.txt"),
        ("a[1].txt", "a[[]1].txt"),
    ],
)
def test_a_path_that_exists_is_meant_as_it_is_written(tmp_path, file, pattern):
    make(tmp_path, file, "a1.txt", "1/a.txt", "data v/a.txt")
    assert [file.num_bytes for file in inventory(tmp_path / pattern).files] == [len(file)]
    memory = fsspec.filesystem("memory")
    memory.pipe(f"/brackets-{len(pattern)}/{file}", file.encode())
    assert len(inventory(f"memory://brackets-{len(pattern)}/{pattern}").files) == 1


def test_brackets_that_are_no_name_are_a_set_and_the_error_tells_how_to_write_one(tmp_path):
    make(tmp_path, "a1.txt", "a2.txt", "a3.txt")
    assert list(texts(tmp_path / "a[12].txt")) == ["a1.txt", "a2.txt"]
    with pytest.raises(DataError, match=r"write \[\[\] for the character itself"):
        inventory(tmp_path / "b[1].txt")


# --- chained addresses -----------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("in/a.txt", "in/b.txt", "in/.c.txt", "__MACOSX/in/a.txt", "top.txt"):
            file.writestr(name, name)
    return path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("zip://in/*.txt::{}", ["a.txt", "b.txt"]),
        ("zip://**/*.txt::{}", ["in/a.txt", "in/b.txt", "top.txt"]),
        ("zip://in/a.txt::{}", ["a.txt"]),
        ("zip://*.txt::file://{}", ["top.txt"]),
        ("zip://in/*.txt::simplecache::file://{}", ["a.txt", "b.txt"]),
    ],
)
def test_files_inside_an_archive_are_found_and_read(archive, pattern, names):
    found = texts(pattern.format(archive))
    assert list(found) == names
    assert all(text.endswith(name) for name, text in found.items())


def test_every_archive_that_matches_is_looked_into(archive, tmp_path):
    (tmp_path / "b.zip").write_bytes(archive.read_bytes())
    (tmp_path / ".c.zip").write_bytes(archive.read_bytes())
    found = texts(f"zip://in/*.txt::{tmp_path}/*.zip")
    assert list(found) == ["a.zip/a.txt", "a.zip/b.txt", "b.zip/a.txt", "b.zip/b.txt"]


def test_other_archives_and_file_systems_are_chained_alike(archive, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/chained/a.zip", archive.read_bytes())
    assert list(texts("zip://in/*.txt::memory://chained/a.zip")) == ["a.txt", "b.txt"]
    memory.pipe("/chained/x/one.txt", b"one")
    assert texts("simplecache::memory://chained/x/*.txt") == {"one.txt": "one"}
    make(tmp_path, "t/a.txt", "t/b.txt")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as file:
        file.add(tmp_path / "t", "t")
    assert texts(f"tar://t/*.txt::{tmp_path}/a.tar.gz") == {"a.txt": "t/a.txt", "b.txt": "t/b.txt"}


def make_archive(path, contents):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in contents.items():
                file.writestr(name, content)
        return path
    with tarfile.open(path, "w:" + path.suffix.removeprefix(".").removesuffix("tar")) as file:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz"])
def test_threads_that_read_one_archive_do_not_mix_its_members(tmp_path, name):
    contents = {f"{i}.txt": bytes([65 + i % 26]) * 50_000 for i in range(60)}
    path = make_archive(tmp_path / name, contents)
    files = inventory(f"{name.split('.')[1]}://*.txt::{path}").files

    def read(file):
        with file.open() as stream:
            return b"".join(iter(lambda: stream.read(1_000), b""))

    with ThreadPoolExecutor(8) as pool:
        assert dict(zip([file.name for file in files], pool.map(read, files), strict=True)) == contents


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_an_archive_is_indexed_once_for_many_members(tmp_path, name, monkeypatch):
    opened = []
    for kind in (zipfile.ZipFile, tarfile.TarFile):
        start = kind.__init__
        monkeypatch.setattr(
            kind, "__init__", lambda self, *a, _start=start, **k: (opened.append(1), _start(self, *a, **k))[1]
        )
    path = make_archive(tmp_path / name, {f"{i}.txt": b"text" for i in range(200)})
    opened.clear()
    assert len(texts(f"{name.split('.')[1]}://*.txt::{path}")) == 200
    assert len(opened) < 10


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_large_file_in_an_archive_is_read_whole(tmp_path, name, monkeypatch):
    monkeypatch.setattr("lmcore.data.sources.PART_BYTES", 1_000)
    lines = "".join(f'{{"text": "line {i}"}}\n' for i in range(500)).encode()
    table = io.BytesIO()
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(500)]}), table, row_group_size=50)
    path = make_archive(tmp_path / name, {"a.jsonl": lines, "b.parquet": table.getvalue()})
    pattern = f"{name.split('.')[1]}://*::{path}"
    files = inventory(pattern).files
    assert [file.name for file in files] == ["a.jsonl", "b.parquet"]
    read = [text_of(record) for f in files for record in read_records(f, source(pattern), LimitsConfig())]
    assert read == [f"{kind} {i}" for kind in ("line", "row") for i in range(500)]


def test_an_archive_that_is_named_as_a_file_is_an_error_with_the_chain_to_write(archive):
    with pytest.raises(DataError, match=r"read by zip://\*\*/\*\.jsonl::.*a\.zip"):
        inventory(archive)


def test_an_archive_that_changed_is_read_anew(archive):
    first = inventory(f"zip://in/*.txt::{archive}").digest
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("in/a.txt", "other")
    assert texts(f"zip://in/*.txt::{archive}") == {"a.txt": "other"}
    assert inventory(f"zip://in/*.txt::{archive}").digest != first


def test_a_missing_archive_and_an_unknown_protocol_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"cannot be listed.*gone\.zip"):
        inventory(f"zip://*.txt::{tmp_path}/gone.zip")
    with pytest.raises(DataError, match="cannot be listed"):
        inventory("nosuch://a/*.txt")


def test_two_colons_in_a_name_are_no_chain(tmp_path):
    make(tmp_path, "a::b.txt")
    assert texts(tmp_path / "a::b.txt") == {"a::b.txt": "a::b.txt"}
    assert len(match(str(tmp_path / "*::*.txt")).files) == 1
