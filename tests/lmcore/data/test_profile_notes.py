"""Scripts without spaces pass profiles; where one drops most of a language, it is said."""

import json
import random

import numpy as np
import pyarrow as pa
import pytest

from lmcore.config import DataConfig, GopherRules, LanguageConfig, QualityConfig, SourceConfig
from lmcore.data.documents import build_documents
from lmcore.data.quality import Scripts, first_broken_rules
from lmcore.data.scripts import SCRIPTS, scripts_of
from lmcore.data.signals import measure
from lmcore.data.sources import take_inventory
from lmcore.data.splits import build_splits
from lmcore.errors import DataError
from lmcore.progress import silent
from tests.lmcore.data.languages import ARTICLE_1
from tests.lmcore.data.unspaced import MARKS, WORDS, write

SCRIPT_OF = {"zh": "Chinese", "ja": "Japanese", "th": "Thai", "lo": "Lao", "km": "Khmer", "my": "Burmese"}


def page(language, seed=0, sentences=15):
    """A page of that many sentences in a few lines."""
    draw = random.Random(f"{language} {seed}")
    words = draw.choices(WORDS[language].split(), k=21 * sentences)
    text = write(language, words)
    end = MARKS[language][1]
    return text.replace(end, end + "\n", 3) if end != " " else text


def english(seed):
    draw = random.Random(seed)
    words = [*"abcdefghijklmnop"]
    lines = [
        f"The {''.join(draw.choices(words, k=6))} of {''.join(draw.choices(words, k=7))} and "
        f"{''.join(draw.choices(words, k=5))} {''.join(draw.choices(words, k=8))} that be with it."
        for _ in range(12)
    ]
    return "\n".join(lines)


def column(texts):
    return pa.array(texts, pa.large_string())


def split(tmp_path, texts, **options):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    source = SourceConfig(name="a", kind="files", path=str(tmp_path / "a.jsonl"))
    config = DataConfig(sources=(source,), workers=1, **options)
    for name in ("documents", "splits"):
        (tmp_path / name).mkdir()
    build_documents(config, take_inventory(config), tmp_path / "documents", silent)
    return build_splits(config, tmp_path / "documents", tmp_path / "splits", silent)


@pytest.mark.parametrize("language", WORDS)
@pytest.mark.parametrize("profile", ["prose", "gopher", "c4", "fineweb", "web"])
def test_a_page_of_fifteen_sentences_is_kept(language, profile):
    config = QualityConfig(profile=profile)
    texts = [page(language, seed) for seed in range(4)]
    measured = measure(column(texts), config)
    scripts = scripts_of(measured.texts)
    assert scripts.to_pylist() == [SCRIPT_OF[language]] * 4
    assert first_broken_rules(config, measured.signals, 4, Scripts(scripts)).to_pylist() == [None] * 4
    if profile in ("c4", "web"):
        assert measured.texts.to_pylist() == [
            "\n".join(line.strip() for line in text.splitlines()) for text in texts
        ]


def test_limits_of_their_own_drop_them_and_are_named():
    config = QualityConfig(profile="gopher", unspaced={"min_mean_word_chars": 3.0})
    measured = measure(column([page("zh")]), config)
    found = first_broken_rules(config, measured.signals, 1, Scripts(scripts_of(measured.texts)))
    assert found.to_pylist() == ["unspaced.min_mean_word_chars"]


def test_repetition_and_short_texts_are_dropped_in_any_script():
    texts = [page("zh", sentences=2) * 8, page("th")[:60]]
    found = []
    for profile in ("gopher", "prose"):
        config = QualityConfig(profile=profile)
        measured = measure(column(texts), config)
        found.append(
            first_broken_rules(config, measured.signals, 2, Scripts(scripts_of(measured.texts))).to_pylist()
        )
    assert found[0][0].startswith("repetition.")
    assert found[1] == [None, "gopher.min_words"]


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("", "none"),
        ("12, 34!", "none"),
        ("The mill", "Latin"),
        ("naïve straße", "Latin"),
        ("x" * 70 + "мельница" * 20, "Cyrillic"),
        ("我们用 Python", "Chinese"),
        ("我们学校" * 30 + " Wikipedia ウィキ", "Chinese"),
        ("東京の水車は古い", "Japanese"),
        ("コンピューター", "Japanese"),
        ("물레방아는 강가에", "Korean"),
        ("𠀀𠀁", "Chinese"),
        ("Ꮳ" * 20, "other"),
        (ARTICLE_1["hi"], "Devanagari"),
        (ARTICLE_1["ar"], "Arabic"),
        (ARTICLE_1["vi"], "Latin"),
        (ARTICLE_1["ja"] * 100, "Japanese"),
        (ARTICLE_1["zh"] * 100 + "x" * 2_000, "Chinese"),
        ("x" * 9_001 + ARTICLE_1["th"], "Latin"),
    ],
)
def test_the_script_is_that_of_most_bytes_of_letters(text, script):
    assert scripts_of(column(["x", text, "я"]).slice(1, 1)).to_pylist() == [script]
    assert script in SCRIPTS


def test_a_profile_that_drops_most_of_a_script_says_so(tmp_path):
    texts = [english(i) for i in range(40)] + [ARTICLE_1["ru"] * 3 + f"\n{i}" for i in range(10)]
    summary = split(tmp_path, texts, quality=QualityConfig(profile="prose"))
    assert summary["documents"] == 40
    (note,) = summary["notes"]
    assert note.startswith(
        "profile prose drops most of a script: 10 of 10 documents in Cyrillic, 10 of them by "
        "gopher.min_stop_words, whose threshold was made for English. Set data.quality.gopher.min_stop_words"
    )


def test_with_languages_told_a_language_of_the_same_script_is_named(tmp_path):
    texts = [english(i) for i in range(20)] + [ARTICLE_1["de"] * 3 + f"\n{i}" for i in range(10)]
    options = {"quality": QualityConfig(profile="prose")}
    (tmp_path / "told").mkdir()
    (tmp_path / "untold").mkdir()
    (note,) = split(tmp_path / "told", texts, language=LanguageConfig(enabled=True), **options)["notes"]
    assert "drops most of a language: 10 of 10 documents in de, 10 of them by gopher.min_stop_words" in note
    assert split(tmp_path / "untold", texts, **options)["notes"] == []  # most of Latin is kept


def test_a_corpus_in_another_language_alone_says_why_nothing_is_left(tmp_path):
    texts = [ARTICLE_1["de"] * 3 + f"\n{i}" for i in range(10)]
    with pytest.raises(DataError, match=r"Note: profile prose drops most of a script: 10 of 10 .* in Latin"):
        split(tmp_path, texts, quality=QualityConfig(profile="prose"))


def test_a_language_of_which_every_line_is_taken_out_is_named(tmp_path):
    texts = [english(i) for i in range(20)] + [f"Мельница {i}\nу реки\n" * 9 for i in range(5)]
    (note,) = split(tmp_path, texts, quality=QualityConfig(profile="c4"))["notes"]
    assert "5 of 5 documents in Cyrillic, 5 of them by c4_lines.min_line_words, whose threshold" in note


@pytest.mark.parametrize(
    ("quality", "texts"),
    [
        (QualityConfig(profile="none"), [ARTICLE_1["ru"]] * 2),
        (QualityConfig(profile="prose", gopher=GopherRules(min_stop_words=0)), [ARTICLE_1["ru"] * 3] * 2),
        # One of several hundred is not worth a note; a short English text is no matter of language.
        (QualityConfig(profile="prose"), [ARTICLE_1["ru"] * 3] + ["too short"] * 3),
    ],
)
def test_nothing_is_said_where_there_is_nothing_to_say(tmp_path, quality, texts):
    rest = [english(i) for i in range(150)]
    texts = [f"{text}\n{i}" for i, text in enumerate(texts)]
    assert split(tmp_path, texts + rest, quality=quality)["notes"] == []


def test_figures_are_finite_for_any_script():
    texts = [page(language) for language in WORDS] + list(ARTICLE_1.values())
    signals = measure(column(texts), QualityConfig(profile="web")).signals
    assert all(np.isfinite(values).all() for values in signals.values())
