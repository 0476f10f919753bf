"""Words of scripts without spaces: where they are cut, and that rules and near duplicates go by them."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.config import C4LineRules, DataConfig, NearDedupConfig, QualityConfig
from lmcore.data.arrow import text_array, text_buffers
from lmcore.data.documents import libraries_of
from lmcore.data.minhash import band_hashes, ngram_hashes
from lmcore.data.segments import _BYTES_AT_A_TIME, spaced, word_breaks
from lmcore.data.signals import measure, measure_text
from lmcore.data.words import words_of
from tests.lmcore.data.unspaced import WORDS, write

NEAR = NearDedupConfig(enabled=True)
# As ICU 78 cuts them.
SEGMENTED = [
    ("我们在北京大学学习。", "我们 在 北京 大学 学习 。"),
    ("在Python中，我们用print(\"你好\")。2024年", '在 Python 中 ， 我们 用 print ( " 你好 " ) 。 2024 年'),
    ("東京の水車は、古い。", "東京 の 水車 は 、 古い 。"),
    ("โรงเรียนของนักเรียน ครู", "โรงเรียน ของ นักเรียน ครู"),
    ("ພາສາລາວເປັນພາສາທາງການ", "ພາສາ ລາວ ເປັນ ພາສາ ທາງການ"),
    ("ភាសា\u200bខ្មែរជាភាសា\u200b\u200bផ្លូវការ។ប្រជាជន", "ភាសា ខ្មែរ ជា ភាសា ផ្លូវការ ។ ប្រជាជន"),
    ("မြန်မာဘာသာစကားသည်။", "မြန်မာဘာသာ စကား သည် ။"),
    ("བོད་སྐད་ནི་བོད་ཡུལ།", "བོད སྐད ནི བོད ཡུལ །"),
    ("𠀀𠀁是漢字A。", "𠀀 𠀁 是 漢字 A 。"),
    ("大韓民國은 나라", "大韓民國 은 나라"),
]  # fmt: skip


def column(texts):
    return pa.array(texts, pa.large_string())


@pytest.mark.parametrize(("text", "expected"), SEGMENTED)
def test_words_are_those_of_icu_and_other_scripts_keep_theirs(text, expected):
    assert [word for word, _ in words_of(text)] == expected.split(" ")


def test_texts_without_such_scripts_stay_as_they_are():
    texts = column(["The mill, 1834.", "", "Мельница у реки", "물레방아는 강가에", "é" * 200])
    assert spaced(texts) is texts


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text("我们在พูดາສាភ\u200b\u200d𠀀𠀁Aé1。 \n", max_size=60), max_size=6))
def test_breaks_lie_between_characters_and_lose_none(texts):
    array = column(["x", *texts, "y"])
    assert [text.replace(" ", "") for text in spaced(array).to_pylist()] == [
        text.replace(" ", "") for text in array.to_pylist()
    ]
    assert spaced(array.slice(1, len(texts))).to_pylist() == spaced(array).to_pylist()[1:-1]


def test_a_text_has_the_same_words_whatever_stands_beside_it():
    draw = random.Random(0)
    texts = ["".join(draw.choices(WORDS["zh"].split(), k=40)) + "，" for _ in range(6_000)]
    assert sum(len(text.encode()) for text in texts) > 3 * _BYTES_AT_A_TIME
    together = spaced(column(texts)).to_pylist()
    assert [spaced(column([text]))[0].as_py() for text in texts[::300]] == together[::300]


@pytest.mark.parametrize("language", WORDS)
def test_near_duplicates_are_found_as_in_english(language):
    draw, words = random.Random(1), WORDS[language].split()
    texts = []
    for _ in range(150):
        original = draw.choices(words, k=300)
        other = list(original)
        for place in (60, 240):  # as many as in the English control: 2 of 300 words
            other[place] = draw.choice([word for word in words if word != other[place]])
        texts += [write(language, original), write(language, other)]
    bands = band_hashes(column(texts), NEAR)
    shared = (bands[::2] == bands[1::2]).any(axis=1)
    assert shared.mean() >= 0.99
    # Different texts of the same fifty words are no duplicates.
    assert not any((bands[i] == bands[j]).any() for i in range(0, 60, 2) for j in range(i + 2, 60, 2))


@pytest.mark.parametrize("language", WORDS)
def test_an_evaluation_text_is_found_inside_a_document(language):
    draw, words = random.Random(2), WORDS[language].split()
    inside = write(language, draw.choices(words, k=21))
    around = [write(language, draw.choices(words, k=105)) for _ in range(2)]
    wanted, _ = ngram_hashes(column([inside]), 8)
    found, _ = ngram_hashes(column([around[0] + " " + inside + " " + around[1]]), 8)
    other, _ = ngram_hashes(column(around), 8)
    assert set(wanted.tolist()) <= set(found.tolist())
    assert len(wanted) >= 8
    assert not set(wanted.tolist()) & set(other.tolist())


def test_figures_of_words_count_what_is_segmented():
    text = write("zh", WORDS["zh"].split()) + "。"
    signals = measure_text(column([text, text[:4]]), None).signals
    assert 45 <= signals["words"][0] <= 55
    assert 1.5 <= signals["mean_word_chars"][0] <= 3
    assert signals["alphabetic_word_share"][0] > 0.8


def test_c4_counts_words_of_a_line_and_takes_no_long_line_for_a_word():
    long_line = write("zh", WORDS["zh"].split() * 20)
    assert len(long_line) > 1_000
    text = f"我们喜欢音乐和电影。\n您好\n{long_line}"
    left = measure_text(column([text]), C4LineRules()).texts[0].as_py()
    assert left == f"我们喜欢音乐和电影。\n{long_line}"


@pytest.mark.parametrize(("mark", "kept"), [("。", 2), ("！", 2), ("។", 2), ("။", 2), ("。」", 2), ("", 1)])
def test_end_marks_of_other_scripts_end_a_line(mark, kept):
    text = f"The mill stands here.\n我们喜欢音乐和电影{mark}"
    left = measure_text(column([text]), C4LineRules(require_end_mark=True)).texts[0].as_py()
    assert len(left.split("\n")) == kept


def test_threads_find_the_same_words():
    texts = [column([write(language, words.split() * 20)]) for language, words in WORDS.items()]
    alone = [spaced(text).to_pylist() for text in texts]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda i: spaced(texts[i % len(texts)]).to_pylist(), range(48)))
    assert together == [alone[i % len(texts)] for i in range(48)]


@pytest.mark.parametrize(
    ("options", "used"),
    [
        ({"quality": QualityConfig(profile="code")}, False),
        ({"quality": QualityConfig(profile="none")}, False),
        ({"quality": QualityConfig(profile="prose")}, True),
        ({"quality": QualityConfig(profile="none"), "near_dedup": NEAR}, True),
    ],
)
def test_icu_decides_the_key_of_documents_whose_words_are_looked_at(options, used):
    assert ("icu4py" in libraries_of(DataConfig(**options), [])) == used


def test_breaks_ascend_over_a_batch():
    breaks = word_breaks(*(np.frombuffer("我们，学校".encode(), np.uint8), np.array([0, 15])))
    assert breaks.tolist() == [0, 6, 9, 15]


LINES = (
    "我们学校的学生喜欢在河边读书。",
    "水车[1]在河边转动[citation needed]，磨坊主人很高兴。",
    "  水  ",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "The miller reads 日本語の本 by the river.",
    "javascript must be enabled 我们",
    "",
    "粉",
)


@pytest.mark.parametrize("seed", range(30))
def test_where_c4_takes_lines_out_the_words_are_those_of_what_is_left(seed):
    draw = random.Random(seed)
    texts = ["\n".join(draw.choices(LINES, k=draw.randint(0, 12))) for _ in range(20)]
    measured = measure(text_array(texts), QualityConfig(profile="c4"))
    again = spaced(measured.texts, word_breaks(*text_buffers(measured.texts)))
    found = spaced(measured.texts, measured.breaks)
    assert [text.split() for text in found.to_pylist()] == [text.split() for text in again.to_pylist()]
