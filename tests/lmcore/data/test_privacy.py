from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.config import DataConfig, PrivacyConfig, SourceConfig
from lmcore.data import prepare
from lmcore.data.documents import build_documents
from lmcore.data.pool import Processes, Threads, local_workers
from lmcore.data.privacy import KINDS, kinds_of, mask, masker_of
from lmcore.data.sources import take_inventory
from lmcore.errors import ConfigError
from lmcore.progress import silent

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
    assert masker_of(PrivacyConfig()) is None
