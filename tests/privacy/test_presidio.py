"""Presidio as it is installed by the extra ``privacy``; without a model of spaCy's, which pip cannot find."""

import importlib
import logging
import sys
from collections import Counter

import pyarrow.parquet as pq
import pytest

from lmcore.config import DataConfig, PresidioConfig, QualityConfig, SourceConfig
from lmcore.data import prepare
from lmcore.data.arrow import text_array
from lmcore.data.presidio import mask_entities, presidio_libraries
from lmcore.data.privacy import mask_texts
from lmcore.errors import ConfigError
from lmcore.progress import silent

PATTERNS = PresidioConfig(entities=("IBAN_CODE", "CRYPTO"), model="")
IBAN = "DE89370400440532013000"


# A model as pip installs one, which tells by lists what others tell by learning.
MODEL = """
import spacy

def load(**options):
    nlp = spacy.blank("en")
    names = [("PERSON", "Ada Miller"), ("GPE", "Duluth"), ("CARDINAL", "seven")]
    patterns = [{"label": label, "pattern": pattern} for label, pattern in names]
    nlp.add_pipe("entity_ruler").add_patterns(patterns)
    return nlp
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    (tmp_path / "en_mill_names").mkdir()
    (tmp_path / "en_mill_names" / "__init__.py").write_text(MODEL)
    about = tmp_path / "en_mill_names-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: en_mill_names\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield "en_mill_names"
    sys.modules.pop("en_mill_names", None)


def masked(text, config=PATTERNS):
    counted = Counter()
    return mask_entities(text, config, counted), dict(counted)


def test_what_is_asked_for_is_masked_and_counted():
    assert masked(f"Pay to {IBAN} or {IBAN}.") == ("Pay to <IBAN_CODE> or <IBAN_CODE>.", {"iban_code": 2})
    # The check digits are wrong.
    assert masked("Pay to DE89370400440532013001.") == ("Pay to DE89370400440532013001.", {})


def test_long_texts_are_looked_at_to_their_end():
    line = "grist for the mill\n"
    text = line * 15_000 + IBAN + "\n" + line
    found, counted = masked(text)
    assert found == text.replace(IBAN, "<IBAN_CODE>")
    assert counted == {"iban_code": 1}


def test_placeholders_of_known_forms_stay(tmp_path):
    config = DataConfig.model_validate(
        {"privacy": {"emails": True, "presidio": {"entities": ["URL"], "model": ""}}}
    )
    texts = text_array(["Ask miller@example.org or see https://example.org/mill now"])
    counted = Counter()
    (text,) = mask_texts(texts, config.privacy, counted).to_pylist()
    assert text == "Ask <EMAIL> or see <URL> now"
    assert counted == {"emails": 1, "url": 1}


def test_documents_are_masked_and_their_shards_know_by_what(tmp_path):
    (tmp_path / "a.txt").write_text(f"Pay to {IBAN}, please.")
    config = DataConfig(
        sources=(SourceConfig(name="s", kind="files", path=str(tmp_path / "a.txt")),),
        quality=QualityConfig(profile="none"),
        privacy={"presidio": PATTERNS},
    )
    out = tmp_path / "out"
    out.mkdir()
    made = prepare.build_documents(config, prepare.take_inventory(config), out, silent)
    assert made["masked"] == {"iban_code": 1}
    (text,) = pq.read_table(out / "documents" / "00000.parquet")["text"].to_pylist()
    assert text == "Pay to <IBAN_CODE>, please."
    assert presidio_libraries(PATTERNS) == ("presidio-analyzer", "spacy", "phonenumbers")


def test_names_are_masked_and_what_has_no_placeholder_is_passed_over_in_silence(model, caplog):
    config = PresidioConfig(entities=("PERSON", "LOCATION"), model=model)
    with caplog.at_level(logging.WARNING, "presidio-analyzer"):
        masked("a", config)
        caplog.clear()
        found = masked("Ada Miller of Duluth has seven mills.", config)
    assert found == ("<PERSON> of <LOCATION> has seven mills.", {"person": 1, "location": 1})
    assert not caplog.records


def test_a_model_is_asked_for_no_more_than_it_tells(model):
    with pytest.raises(ConfigError, match=r"names 'AGE', which .*takes a model that tells it"):
        masked("a", PresidioConfig(entities=("PERSON", "AGE"), model=model))
    with pytest.raises(ConfigError, match=r"reads another language: .*'de', found en"):
        masked("a", PresidioConfig(entities=("PERSON",), model=model, language="de"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"entities": ("IBAN",)}, r"names 'IBAN', which cannot be found: .*PHONE_NUMBER.*Write IBAN_CODE"),
        ({"entities": ("PERSON",)}, r"names 'PERSON', which .*found PERSON, which takes a model"),
        ({"entities": ("EMAIL_ADDRESS",)}, r"would ask the network.*data\.privacy\.emails"),
        ({"entities": ("PERSON",), "model": "no_such_model"}, r"'no_such_model' is not installed"),
        ({"entities": ("PERSON",), "model": "no.such.model"}, r"'no.such.model' is not installed"),
        ({"entities": ("PERSON",), "model": "psutil"}, r"spaCy cannot read .*model 'psutil'"),
        (
            {"entities": ("URL",), "language": "none"},
            r"spaCy cannot read data.privacy.presidio.language 'none'",
        ),
    ],
)
def test_what_cannot_be_found_is_refused(options, says):
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        masked("a", PATTERNS.model_copy(update=options))
