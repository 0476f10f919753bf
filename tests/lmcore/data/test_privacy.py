import re
import sysconfig
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.config import DataConfig, PrivacyConfig, SourceConfig
from lmcore.data import prepare
from lmcore.data.arrow import text_array
from lmcore.data.documents import build_documents
from lmcore.data.pool import Processes, Threads, local_workers
from lmcore.data.privacy import KINDS, kinds_of, mask, mask_texts, masks
from lmcore.data.sources import take_inventory
from lmcore.errors import ConfigError
from lmcore.progress import silent
from tests.benchmarks.privacy import FORMS, recall, source_files

ALL = kinds_of(PrivacyConfig(emails=True, ips=True, phones=True, cards=True, secrets=True))
# Made up, or published as examples; in two parts, so that no scanner takes them for real.
TOKEN = "gh" + "p_" + "a1B2" * 9
ACCESS = "AK" + "IA" + "IOSFODNN7EXAMPLE"


def masked(text):
    counted = Counter()
    return mask(text, ALL, counted), dict(counted)


@pytest.mark.parametrize(
    ("text", "expected", "counts"),
    [
        ("Write to jane.doe+x@mail.example.org, please.", "Write to <EMAIL>, please.", {"emails": 1}),
        ("the server 8.8.8.8 and 2001:4860:4860::8888", "the server <IP> and <IP>", {"ips": 2}),
        ("call +49 (0)30 1234567 or (212) 555-0123", "call <PHONE> or <PHONE>", {"phones": 2}),
        ("card 4111 1111 1111 1111, or 3782-822463-10005", "card <CARD>, or <CARD>", {"cards": 2}),
        (f"token={TOKEN} key {ACCESS}", "token=<SECRET> key <SECRET>", {"secrets": 2}),
        (
            "-----BEGIN RSA PRIVATE " + "KEY-----\n" + "MIIE" * 20 + "\n-----END RSA PRIVATE KEY-----\nrest",
            "<SECRET>\nrest",
            {"secrets": 1},
        ),
    ],
)
def test_well_known_forms_are_masked_and_counted(text, expected, counts):
    assert masked(text) == (expected, counts)


@pytest.mark.parametrize(
    "text",
    [
        "ping 127.0.0.1, 10.0.0.1, 192.168.1.254, ::1 or fe80::1",
        "card 4111 1111 1111 1112 has a wrong check digit, 0000 0000 0000 0000 is none",
        "at 12:30:45 on 2024-01-02, version 3.11.7, section 1.2.3.4.5, 999.1.1.1",
        "std::vector<int>, a::b::c, def f(x): return x @ y",
        "import numpy as np  # @property, user@host, @decorator",
        "the numbers 1234567, 3.141592653589793 and 0x7fff5fbff8c0",
        "a hash: d41d8cd98f00b204e9800998ecf8427e",
    ],
)
def test_what_only_looks_alike_stays(text):
    assert masked(text) == (text, {})


@settings(deadline=None)
@given(st.text(st.sampled_from("a1.@:-+ ()4_\nx"), max_size=60))
def test_masking_again_changes_nothing(text):
    once, _ = masked(text)
    assert masked(once) == (once, {})


def test_each_kind_has_a_setting_and_only_what_is_asked_for_is_masked():
    assert {kind.name for kind in KINDS} | {"presidio"} == set(PrivacyConfig.model_fields)
    text = "a@b.example 8.8.8.8"
    assert mask(text, kinds_of(PrivacyConfig(emails=True)), Counter()) == "<EMAIL> 8.8.8.8"
    assert kinds_of(PrivacyConfig()) == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", ["a.", "1 ", "+1 ", "a@", "1:", "-----BEGIN PRIVATE KEY-----", "eyJ", "1."])
def test_no_text_takes_for_ever(piece):
    assert masked(piece * (200_000 // len(piece)))[0]


def test_documents_are_masked_and_counted(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"mail user{i}@host.example or call +1 212 555 0123\n" * (i + 1))
    config = DataConfig(
        sources=(SourceConfig(name="s", kind="files", path=f"{tmp_path}/*.txt"),),
        quality={"profile": "none"},
        privacy=PrivacyConfig(emails=True),
        shard_bytes=1,
        workers=1,
    )
    (tmp_path / "out").mkdir()
    summary = build_documents(config, take_inventory(config), tmp_path / "out", silent)
    assert summary["masked"] == {"emails": 10}


def test_presidio_without_its_packages_is_an_error_before_any_work(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    config = DataConfig.model_validate(
        {
            "sources": [{"name": "s", "kind": "files", "path": str(tmp_path / "a.txt")}],
            "privacy": {"presidio": {"entities": ["PERSON"], "model": "no_such_model"}},
        }
    )
    out = tmp_path / "out"
    out.mkdir()
    # Where the extra is installed, it is the model that is not.
    with pytest.raises(ConfigError, match=r"is not installed(?s:.*)(pip install|spacy download)"):
        build_documents(config, take_inventory(config), out, silent)
    assert not list(out.iterdir())
    (tmp_path / "a.txt").unlink()  # nothing is looked for before
    with pytest.raises(ConfigError, match="is not installed"):
        prepare.take_inventory(config)


def test_presidio_is_worth_processes_sooner():
    plain, masking = (
        DataConfig.model_validate({"workers": 2, "privacy": {"presidio": {"entities": entities}}})
        for entities in ([], ["PERSON"])
    )
    assert local_workers(plain, 2_000_000) == local_workers(masking, 1_000_000) == Threads(2)
    assert local_workers(masking, 2_000_000) == Processes(2)


def test_what_asks_for_nothing_masks_nothing():
    assert not masks(PrivacyConfig())
    texts = text_array(["8.8.8.8", ""])
    assert mask_texts(texts, PrivacyConfig(), Counter()) is texts


# --- nothing but its kind --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "return x[::2] + x[1::2] + y[10::20] + z[2000::3] + w[2001:2002:3]",
        "using face::bed; int n = dec::add(1, 2); c10::a::b F::*(A...) be:: Bad::",
        "numpy==1.26.4.1 to version 2.3.4.1, v10.0.190.41, >=4.100.2.1, 'name': ^8.8.4.4, types<2.31.0.7",
        "OID 1.3.6.1, ObjectIdentifier('2.5.29.14'), ED25519 = 1.3.101.112",
        "section 3.4.1.200, RFC 7540 \u00a7 8.1.2.240, sections 8.1.2.6 and Figure 12.34.56.78",
        "at 12:30:45 on 2023:10:11 12:13:14, mac 00:1b:44:11:3a:b7, sha 2fd4:e1c6",
        "4.359 744 722 2071 e-18, 934 966 998 9031 935, 212 555 0123 4, id 555-12-345-6789",
        "+2147483647 +1980-02-29 01:02:03 x +1.12345679 a+49301234567890123",
        "rng(2435908729190400), 14633730048000000*t**14 + 4828147466240000*t, [1, 6458161865649291]",
        "4111 11111111 1111, 4111-1111 1111-1111, 1234567812345670, 20230301181139587",
        "a@b.T, W@x.shape, icon@2x.png, pkg@1.2.3, @app.route, git@host.com:org/repo.git",
        "mysql://root:secret@db.example.com/x, \\n@mlflow.trace",
        "sk-" + "x" * 40 + ", AKIA" + "A" * 16 + ", ghp_" + "a" * 36,
    ],
)
def test_code_versions_and_tables_stay(text):
    assert masked(text) == (text, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Call 212.555.0123 now", "Call <PHONE> now"),
        ("Call 212 555 0123 now", "Call <PHONE> now"),
        ("(212) 555 0123, 1-212-555-0123, 1.212.555.0123", "<PHONE>, <PHONE>, <PHONE>"),
        (
            "\u8bf7\u8054\u7cfb+86 138 0013 8000\uff0c\u8c22\u8c22",
            "\u8bf7\u8054\u7cfb<PHONE>\uff0c\u8c22\u8c22",
        ),
        ("<td>8.8.8.8</td> from host 9.9.9.9", "<td>8.8.8.8</td> from host <IP>"),
        (
            "http://8.8.4.4/x, 1.1.1.1:53, 9.9.9.0/24, [2606:4700:4700::1111]:443.",
            "http://<IP>/x, <IP>:53, <IP>/24, [<IP>]:443.",
        ),
        ("203.0.114.7 - - [10/Oct/2000]", "<IP> - - [10/Oct/2000]"),
        ("It is 2001:4860:4860::8888.", "It is <IP>."),
        ("'\\tjane@mail.example.org\\n'", "'\\t<EMAIL>\\n'"),
        ("card 4111111111111111, [5105105105105100]", "card <CARD>, [<CARD>]"),
    ],
)
def test_each_form_is_masked_whatever_stands_around(text, expected):
    assert masked(text)[0] == expected


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(st.sampled_from("a1.@:-+ ()4_x29fF/"), max_size=40),
            st.sampled_from(
                ["8.8.8.8", "212-555-0123", "+49 30 1234567", "a@b.org", "4111 1111 1111 1111", "x[::2]"]
            ),
        ),
        max_size=6,
    )
)
def test_a_line_is_masked_as_it_is_alone(lines):
    whole, counted = masked("\n".join(lines))
    alone = [masked(line) for line in lines]
    assert whole == "\n".join(text for text, _ in alone)
    assert counted == dict(sum((Counter(counts) for _, counts in alone), Counter()))


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from("0123456789.:+-() @abefxyzAKIghp_\n\u00e9"), max_size=120))
def test_marked_lines_hold_all_that_the_patterns_find(text):
    raw = text.encode()
    expected = sorted(
        (match.start(), kind.name)
        for kind in ALL
        if kind.pattern.pattern[:5] != b"-----"
        for line in re.finditer(rb"[^\n]+", raw)
        for match in kind.pattern.finditer(line[0])
        if kind.holds(match)
    )
    assert (masked(text)[0] != text) == bool(expected)
    if len(expected) == 1:
        assert masked(text)[1] == {expected[0][1]: 1}


@pytest.mark.timeout(60)
def test_a_long_line_full_of_matches_takes_no_square_of_its_length():
    line = ", ".join(f"user{i}@example{i}.org host 8.8.{i % 256}.8" for i in range(40_000))
    text, counts = masked(line)
    assert counts == {"emails": 40_000, "ips": 40_000}
    assert text == ", ".join(["<EMAIL> host <IP>"] * 40_000)


def test_many_texts_are_masked_as_each_alone():
    texts = [f"line {i}\nhost 8.8.{i % 256}.8 or user{i}@mail.example\n" * (i % 5) for i in range(3_000)]
    config = PrivacyConfig(emails=True, ips=True)
    counted, alone = Counter(), Counter()
    found = mask_texts(text_array(texts), config, counted).to_pylist()
    assert found == [mask(text, kinds_of(config), alone) for text in texts]
    assert counted == alone
    assert counted["emails"] == sum(i % 5 for i in range(3_000))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_planted_is_found(form):
    found, kept = recall(form, 400, seed=1)
    assert found >= 0.99 * 400, kept


def test_the_standard_library_stays_as_it_is():
    # Where it is about addresses it has some, as examples.
    files = dict(source_files([sysconfig.get_path("stdlib")], 600))
    plain = [text for path, text in files.items() if not re.search("socket|ipaddress|http|url", str(path))]
    numbers = kinds_of(PrivacyConfig(ips=True, phones=True, cards=True, secrets=True))
    assert len(plain) > 500
    assert [text[:200] for text in plain if mask(text, numbers, Counter()) != text] == []
