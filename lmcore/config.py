"""Every setting of the mill, its unit and its default.

The defaults are the quickstart: a small model that a laptop without a GPU trains in minutes. Recipes
replace fields (``flows/recipes``), and the same classes are the parameters of the Prefect flows, so they
draw the forms of its UI.

A field is part of a stage's *identity* unless it says ``identity=False``: workers, paths, launchers,
layouts and log levels change how a result is reached, not which result it is.
"""

from __future__ import annotations

import codecs
import difflib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from encodings.aliases import aliases
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from lmcore.errors import ConfigError, nearest
from lmcore.layout import find_misfit
from lmcore.settings_yaml import SettingsError, decode_settings, read_setting, read_settings

MAX_SEED = 2**63 - 1
# Names become file names, arguments and parts of metrics: none is `..`, hidden or like an option, and each
# fits into the 255 bytes of a file name with what is put around it.
NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
MAX_NAME_CHARS = 100
_NUMBERS = (int, float, int | None, float | None)
_YAML_KINDS = {bool: "true or false", int: "a number", float: "a number", dict: "a table", list: "a list"}
_SWITCHES = ("true", "false", "yes", "no", "on", "off")
Activation = Literal["swiglu", "relu2", "gelu", "gelu_erf"]
Role = Literal["embedding", "matrix", "router", "head", "norm", "bias"]
AUTO, DETECT = "auto", "detect"  # of SourceConfig.encoding
NEEDS_A_PATH = "needs a path"  # what the error of a source without one says
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def setting(
    default: Any,
    description: str,
    *,
    unit: str = "",
    identity: bool = True,
    **constraints: Any,
) -> Any:
    """Declare a field: default, description and unit, and whether its value decides the result."""
    extra: dict[str, Any] = {"unit": unit} if unit else {}
    if not identity:
        extra["identity"] = False
    text = f"{description} [{unit}]" if unit else description
    return Field(default, description=text, json_schema_extra=extra, **constraints)


def userinfo(address: str) -> str:
    """The part of a URL that names a user, and perhaps a password."""
    return address.partition("://")[2].partition("/")[0].rpartition("@")[0]


def holds_secret(address: str) -> bool:
    """Whether a URL, or one of a chain of them, has the form user:password@host or ends in ?token=..."""
    return (
        re.search(r"://[^@:/]*:(?!\d+/)[^@]*@", address) is not None
        or re.search(r"://.*[?&][^=&/]*(token|sig|signature|secret|passw(or)?d|(?<!ssl)key)=", address, re.I)
        is not None
    )


def check_tracking_uri(uri: str) -> None:
    """Raise ``ValueError`` if ``uri`` is no address of an MLflow, or holds a secret; empty is right."""
    if userinfo(uri) or holds_secret(uri):
        raise ValueError(
            "uri holds a user name, password or token; "
            "leave it out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "or MLFLOW_TRACKING_TOKEN"
        )
    if uri and not re.match(r"(https?|sqlite|postgresql|mysql|mssql)(\+\w+)?://.", uri):
        raise ValueError(
            f"uri {uri!r} is no address of an MLflow; use http://host:port, https://host or sqlite:///file, "
            "or leave it empty"
        )


def _order_the_form(schema: dict[str, Any]) -> None:
    # Prefect's forms sort by "position"; the order of declaration is the order of reading.
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position


class Config(BaseModel):
    """Base of all settings: frozen, strict about names, ordered in forms."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,  # which may be a secret that is refused
        json_schema_extra=_order_the_form,
    )

    @model_validator(mode="before")
    @classmethod
    def _yes_is_no_number(cls, values: Any) -> Any:
        # `true` would pass for 1; `yes` is what YAML 1.1 takes for it.
        for name in values.keys() & cls.model_fields.keys() if isinstance(values, dict) else ():
            word = str(values[name]).lower()
            if word in _SWITCHES and cls.model_fields[name].annotation in _NUMBERS:
                raise ValueError(f"{name} must be a number; found {word}")
        return values

    @model_validator(mode="before")
    @classmethod
    def _no_nul(cls, values: Any) -> Any:
        # No path, argument or variable of the system can hold one.
        for name, value in values.items() if isinstance(values, dict) else ():
            if any("\0" in text for text in (name, value) if isinstance(text, str)):
                raise ValueError(f"{name!r} holds a NUL character, which no recipe may; leave it out")
        return values


def _codec(name: str) -> str:
    """Python's own name of a character set, so that each has one; ``ValueError`` with the nearest if none."""
    try:
        found = codecs.lookup(name)
        if getattr(found, "_is_text_encoding", True) and found.name not in _NO_CHARACTER_SETS:
            return found.name
    except (LookupError, ValueError):
        pass  # unknown
    known = {alias.replace("_", "-") for alias in (*aliases, *aliases.values())} - _NO_CHARACTER_SETS
    near = difflib.get_close_matches(name.lower().replace("_", "-"), sorted(known), n=1, cutoff=0.4)
    raise ValueError(
        f"encoding {name!r} is no character set that Python knows"
        + (f"; did you mean {near[0]!r}?" if near else "")
        + f" Use {AUTO}, {DETECT}, or one such as utf-16-le, windows-1252, shift_jis, gb18030, koi8-r"
    )


_NO_CHARACTER_SETS = {"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape", "mbcs", "oem"}


class SourceConfig(Config):
    """Where raw text comes from."""

    name: str = setting(
        ..., "Name of this source, kept with every document", pattern=NAME, max_length=MAX_NAME_CHARS
    )
    kind: Literal["python_stdlib", "files", "huggingface"] = setting(
        "python_stdlib",
        "The running interpreter's own standard library, files at `path`, or the Hugging Face data set there",
    )
    path: str = setting(
        "",
        "Glob of files, local or an fsspec URL: .txt, .py, .html, .jsonl (.gz, .zst), .parquet, .warc and "
        ".wet (.gz, .zst), .arc (.gz); "
        "of a data set its folder, or else owner/name on the hub",
        identity=False,
    )
    subset: str = setting(
        "",
        "Part of a data set: a name from its card, a folder, or a glob such as data/train-*; "
        "empty: its default, or all of it",
        identity=False,  # which files there are decides, by their digests
    )
    split: str = setting(
        "train",
        "Split of a data set, by its card or by the names of files and folders; all: every split",
        min_length=1,
        identity=False,  # which files there are decides, by their digests
    )
    revision: str = setting(
        "", "Branch, tag or commit of a data set on the hub; empty: its main branch", identity=False
    )
    text_field: str = setting(
        "text", "Field or column that holds the text of a record; meta.text: a field in a field"
    )
    text_format: Literal["plain", "html"] = setting(
        "plain",
        "What records hold; of html the main text is taken, as it always is of .html files",
    )
    id_field: str = setting("", "Field or column that names a record; empty: its file and position")
    encoding: str = setting(
        AUTO,
        "Character set of text files, lines of JSON and binary columns: auto is UTF-8, and UTF-16 and UTF-32 "
        "by their marks; detect: by two detectors that agree; or a codec of Python, such as windows-1252",
    )
    max_bytes: int = setting(
        0,
        "Files are taken in sorted order until this much is reached; 0: no limit",
        unit="bytes",
        ge=0,
        identity=False,  # which files there are decides, by their digests
    )

    @field_validator("encoding")
    @classmethod
    def _is_a_codec(cls, name: str) -> str:
        return name if name in (AUTO, DETECT) else _codec(name)

    @model_validator(mode="after")
    def _files_need_a_path(self) -> SourceConfig:
        if holds_secret(self.path):
            raise ValueError(
                f"source {self.name!r}: path holds a password or key; "
                "leave it out and give it as the file system's own environment variables"
            )
        if self.kind != "python_stdlib" and not self.path:
            raise ValueError(
                f"source {self.name!r}: kind {self.kind!r} {NEEDS_A_PATH}; set it in the recipe, or by "
                '--set data.sources.0.path="data/*.jsonl.zst" (0 is the first source)'
            )
        if self.kind == "python_stdlib" and self.path:
            raise ValueError(
                f"source {self.name!r}: only kinds 'files' and 'huggingface' take a path; "
                f"found kind {self.kind!r} with path {self.path!r}"
            )
        if self.kind != "huggingface" and (self.subset or self.revision or self.split != "train"):
            raise ValueError(
                f"source {self.name!r}: only kind 'huggingface' takes a subset, a split or a revision"
            )
        return self


class CodeRules(Config):
    """Source code (Li et al. 2023, StarCoder, section 3.2)."""

    min_chars: int = setting(64, "Drop shorter files", unit="characters", ge=0)
    max_line_chars: int = setting(1_000, "Drop files with a longer line", unit="characters", ge=1)
    max_mean_line_chars: float = setting(
        100.0, "Drop files whose lines are longer on average", unit="characters", gt=0
    )
    min_alphanumeric_share: float = setting(
        0.25, "Drop files with a smaller share of letters and digits", unit="share", ge=0, le=1
    )
    drop_generated: bool = setting(
        False, "Drop files that say near their top that a program wrote them; the quickstart learns those too"
    )
    max_licence_share: float = setting(
        0.8, "Drop files of which a larger part is the licence at their top", unit="share", ge=0, le=1
    )


class GopherRules(Config):
    """Quality of prose (Rae et al. 2021, Gopher, appendix A1.1)."""

    min_words: int = setting(50, "Drop documents with fewer words", unit="words", ge=0)
    max_words: int = setting(100_000, "Drop documents with more words", unit="words", ge=1)
    min_mean_word_chars: float = setting(3.0, "Drop shorter words on average", unit="characters", ge=0)
    max_mean_word_chars: float = setting(10.0, "Drop longer words on average", unit="characters", gt=0)
    max_hashes_per_word: float = setting(0.1, "Drop more `#`", unit="per word", ge=0)
    max_ellipses_per_word: float = setting(0.1, "Drop more ellipses", unit="per word", ge=0)
    max_bullet_line_share: float = setting(
        0.9, "Drop more lines that begin with a bullet", unit="share", ge=0
    )
    max_ellipsis_line_share: float = setting(
        0.3, "Drop more lines that end in an ellipsis", unit="share", ge=0
    )
    min_alphabetic_word_share: float = setting(
        0.8, "Drop fewer words that hold a letter", unit="share", ge=0, le=1
    )
    min_stop_words: int = setting(
        2,
        "Drop fewer of: the, be, to, of, and, that, have, with; 0 for languages other than English",
        unit="words",
        ge=0,
        le=8,
    )


class UnspacedRules(Config):
    """Limits for documents in scripts without spaces (Chinese, Thai, ...), in place of gopher's own."""

    min_mean_word_chars: float = setting(1.0, "Drop shorter words on average", unit="characters", ge=0)
    min_alphabetic_word_share: float = setting(
        0.6, "Drop fewer words that hold a letter", unit="share", ge=0, le=1
    )


class RepetitionRules(Config):
    """Repetition in prose (Rae et al. 2021, table A1): the largest share of a document that may repeat."""

    max_duplicate_line_share: float = setting(0.30, "Lines that came before", unit="of the lines", ge=0)
    max_duplicate_paragraph_share: float = setting(
        0.30, "Paragraphs that came before", unit="of the paragraphs", ge=0
    )
    max_duplicate_line_char_share: float = setting(
        0.20, "Characters in lines that came before", unit="of the characters", ge=0
    )
    max_duplicate_paragraph_char_share: float = setting(
        0.20, "Characters in paragraphs that came before", unit="of the characters", ge=0
    )
    max_top_2_gram_char_share: float = setting(0.20, "Most frequent 2-gram", unit="of the characters", ge=0)
    max_top_3_gram_char_share: float = setting(0.18, "Most frequent 3-gram", unit="of the characters", ge=0)
    max_top_4_gram_char_share: float = setting(0.16, "Most frequent 4-gram", unit="of the characters", ge=0)
    max_duplicate_5_gram_char_share: float = setting(0.15, "Repeated 5-grams", unit="of the characters", ge=0)
    max_duplicate_6_gram_char_share: float = setting(0.14, "Repeated 6-grams", unit="of the characters", ge=0)
    max_duplicate_7_gram_char_share: float = setting(0.13, "Repeated 7-grams", unit="of the characters", ge=0)
    max_duplicate_8_gram_char_share: float = setting(0.12, "Repeated 8-grams", unit="of the characters", ge=0)
    max_duplicate_9_gram_char_share: float = setting(0.11, "Repeated 9-grams", unit="of the characters", ge=0)
    max_duplicate_10_gram_char_share: float = setting(
        0.10, "Repeated 10-grams", unit="of the characters", ge=0
    )


class C4LineRules(Config):
    """Lines that C4 takes out of a document (Raffel et al. 2020), beside those of scripts and policies."""

    min_line_words: int = setting(3, "Take out lines with fewer words", unit="words", ge=0)
    max_word_chars: int = setting(1_000, "Take out lines with a longer word", unit="characters", ge=1)
    require_end_mark: bool = setting(False, "Take out lines that end in no mark (FineWeb leaves them)")


class C4Rules(Config):
    """Documents that C4 drops, by what its line rules left."""

    drop_lorem_ipsum: bool = setting(True, "Drop documents with a placeholder text")
    drop_curly_brackets: bool = setting(True, "Drop documents with a curly bracket")
    min_sentences: int = setting(5, "Drop documents with fewer sentences", unit="sentences", ge=0)


class FineWebRules(Config):
    """FineWeb's own rules (Penedo et al. 2024, section 3.6)."""

    min_ended_line_share: float = setting(
        0.12, "Drop fewer lines that end in a mark", unit="of the lines", ge=0, le=1
    )
    max_short_line_share: float = setting(
        0.67, "Drop more lines of at most 30 characters", unit="of the lines", ge=0
    )
    max_repeated_line_char_share: float = setting(
        0.01, "Drop more characters in lines that came before", unit="of the characters", ge=0
    )
    max_line_ends_per_word: float = setting(0.3, "Drop more line ends", unit="per word", ge=0)


class QualityConfig(Config):
    """Rules that drop documents. Thresholds look at stored figures: changing one reads no text again."""

    profile: Literal["code", "prose", "gopher", "c4", "fineweb", "web", "none"] = setting(
        "code",
        "Which rules decide; prose: gopher's but for repetition; web: gopher's, then c4's, then fineweb's; "
        "all but code and none were made for English",
    )
    code: CodeRules = setting(CodeRules(), "Source code")
    repetition: RepetitionRules = setting(RepetitionRules(), "Repetition (gopher, web)")
    gopher: GopherRules = setting(GopherRules(), "Quality of prose (prose, gopher, web)")
    unspaced: UnspacedRules = setting(
        UnspacedRules(), "Quality of prose in scripts without spaces (prose, gopher, web)"
    )
    c4_lines: C4LineRules = setting(C4LineRules(), "Lines that are taken out (c4, web)")
    c4: C4Rules = setting(C4Rules(), "Documents of the web (c4, web)")
    fineweb: FineWebRules = setting(FineWebRules(), "Lists and menus (fineweb, web)")


class LimitsConfig(Config):
    """What one input may cost before it is set aside."""

    max_record_bytes: int = setting(10_000_000, "Quarantine larger records", unit="bytes", ge=1)
    max_expansion: float = setting(
        200.0, "Quarantine compressed files that expand more than this", unit="times", gt=1
    )
    max_quarantined: float = setting(
        0.001, "Fail when a larger share of records is quarantined", unit="share", ge=0, le=1
    )
    quarantine_floor: int = setting(
        10,
        "Never fail for this few quarantined records, whatever their share",
        unit="records",
        ge=0,
    )
    max_broken_files: float = setting(
        0.01,
        "Fail when a larger share of the files, and more than one, breaks off before its end",
        unit="share",
        ge=0,
        le=1,
    )


class TextConfig(Config):
    """What is mended in a text before anything looks at it."""

    repair_mojibake: bool = setting(
        False, "Undo what a wrong encoding made of letters, such as Ã© of é (ftfy)"
    )
    drop_zero_width: bool = setting(
        False, "Take out zero-width spaces, soft hyphens, and joiners where letters and emoji need none"
    )


class PresidioConfig(Config):
    """What a model or a national form tells, found by Presidio (the extra ``privacy``)."""

    entities: tuple[str, ...] = setting(
        (), "Mask these entities of Presidio, such as PERSON or IBAN_CODE; empty: it is not used"
    )
    model: str = setting(
        "en_core_web_lg", "Package of spaCy that finds names and places; empty: patterns alone"
    )
    language: str = setting("en", "Language of texts and forms (code of ISO 639)")
    min_score: float = setting(0.5, "Mask what is at least this certain", unit="probability", ge=0, le=1)


class PrivacyConfig(Config):
    """What is masked by a placeholder of its kind, and counted."""

    emails: bool = setting(False, "Mask e-mail addresses")
    ips: bool = setting(False, "Mask public IP addresses")
    phones: bool = setting(False, "Mask telephone numbers in international or North American form")
    cards: bool = setting(False, "Mask card numbers whose check digit is right")
    secrets: bool = setting(False, "Mask keys and tokens of well-known forms")
    presidio: PresidioConfig = setting(PresidioConfig(), "Names, places and numbers that Presidio finds")


class LanguageConfig(Config):
    """The language of a document, stored with its score; rules look at both."""

    enabled: bool = setting(False, "Find the language of each document")
    keep: tuple[str, ...] = setting((), "Keep documents in these alone (codes of ISO 639); empty: all")
    min_score: float = setting(
        0.0, "Drop documents whose language is less certain", unit="probability", ge=0, le=1
    )
    max_chars: int = setting(2_000, "Start of a document that is looked at", unit="characters", ge=1)

    @model_validator(mode="after")
    def _rules_need_languages(self) -> LanguageConfig:
        if not self.enabled and (self.keep or self.min_score):
            raise ValueError("keep and min_score look at the language; set enabled to true with them")
        return self


class NearDedupConfig(Config):
    """Documents that are alike: MinHash of word shingles in bands."""

    enabled: bool = setting(False, "Keep one of several documents that are alike")
    shingle_words: int = setting(5, "Words of a shingle", unit="words", ge=1)
    num_bands: int = setting(14, "Bands; more find less alike ones", unit="bands", ge=1, le=64)
    band_rows: int = setting(8, "Values that must agree in a band; more ask for more likeness", ge=1, le=64)
    seed: int = setting(1, "Seed of the hash functions", ge=0, le=MAX_SEED)
    numbers: Literal["keep", "fold"] = setting(
        "keep",
        "keep: other numbers are other words; fold: any number is the same word, so that texts of one "
        "template are alike",
    )


class RepeatedLinesConfig(Config):
    """Lines or paragraphs that many documents share: taken out of all but the first."""

    enabled: bool = setting(False, "Take out what many documents share")
    unit: Literal["line", "paragraph"] = setting("line", "What is compared")
    max_documents: int = setting(5, "Take out what is found in more than this many", unit="documents", ge=1)
    min_chars: int = setting(20, "Shorter ones are left alone", unit="characters", ge=1)


def _of_every_split(source: Any) -> Any:
    """A source, or its values; of a data set whose split is not set, every split."""
    if isinstance(source, SourceConfig):
        is_set = source.kind != "huggingface" or "split" in source.model_fields_set
        return source if is_set else SourceConfig(**{**source.model_dump(), "split": "all"})
    if isinstance(source, dict) and source.get("kind") == "huggingface":
        return {"split": "all", **source}
    return source


class DecontaminationConfig(Config):
    """Evaluation sets whose text must not be learned (Brown et al. 2020, appendix C)."""

    evaluation_sets: bool = setting(
        True,
        "Look for the text of evaluation.sets, without naming them here",
        identity=False,  # what is looked for decides, see Recipe.preparation
    )
    sources: tuple[SourceConfig, ...] = setting(
        (), "Other texts that must not be learned; of a data set every split, unless its split is set"
    )
    ngram_words: int = setting(13, "Words in a row that count as found", unit="words", ge=1)
    max_ngrams: int = setting(0, "Drop documents with more of them", ge=0)

    @field_validator("sources", mode="before")
    @classmethod
    def _every_split(cls, sources: Any) -> Any:
        # A benchmark is mostly its test split, and the default of a source is the training split.
        if not isinstance(sources, (list, tuple)):
            return sources
        return tuple(map(_of_every_split, sources))


class TokenizerConfig(Config):
    """The byte-level BPE tokenizer: learned, or brought."""

    path: str = setting(
        "",
        "A tokenizer.json to bring, or its folder; empty: one is learned",
        identity=False,  # what it holds decides, by its digest
    )
    end_of_text: str = setting(
        "<|endoftext|>", "Token of a brought tokenizer that ends a document", min_length=1
    )
    special_tokens: tuple[str, ...] = setting(
        (), "More special tokens of a learned one, after <|endoftext|>", unit="tokens"
    )

    vocab_size: int = setting(4_096, "Entries, special tokens included", unit="tokens", ge=257)
    pattern: Literal["gpt2", "cl100k", "llama3"] = setting(
        "llama3", "How text is split before merging; each is one that gigatoken knows"
    )
    sample_bytes: int = setting(
        10_000_000, "Text to learn merges from; 0: all of the training split", unit="bytes", ge=0
    )

    @model_validator(mode="after")
    def _special_tokens_fit(self) -> TokenizerConfig:
        tokens = ("<|endoftext|>", *self.special_tokens)
        if twice := sorted({token for token in tokens if tokens.count(token) > 1}):
            raise ValueError(
                "special_tokens must differ from each other and from <|endoftext|>; "
                f"found {', '.join(twice)} twice"
            )
        if odd := [token for token in tokens if any("\ud800" <= char <= "\udfff" for char in token)]:
            raise ValueError(f"special_tokens must be text; found half a character (surrogate) in {odd[0]!a}")
        if "" in tokens:
            raise ValueError("special_tokens holds an empty text; leave it out")
        if not self.path and self.vocab_size < 256 + len(tokens):
            raise ValueError(
                f"vocab_size {self.vocab_size} has no room for 256 bytes and {len(tokens)} special tokens; "
                f"use at least {256 + len(tokens)}"
            )
        return self


class DataConfig(Config):
    """From raw files to tokens."""

    sources: tuple[SourceConfig, ...] = setting(
        (SourceConfig(name="python-stdlib", max_bytes=40_000_000),),
        "Where raw text comes from",
        min_length=1,
    )
    quality: QualityConfig = setting(QualityConfig(), "Named rules that drop documents")
    text: TextConfig = setting(TextConfig(), "What is mended in a text")
    privacy: PrivacyConfig = setting(PrivacyConfig(), "What is masked")
    language: LanguageConfig = setting(LanguageConfig(), "Which languages are kept")
    limits: LimitsConfig = setting(LimitsConfig(), "What one input may cost before it is set aside")
    exact_dedup: bool = setting(
        True,
        "Keep one of several documents with the same text; blanks at the ends of lines and blank lines do "
        "not count",
    )
    near_dedup: NearDedupConfig = setting(NearDedupConfig(), "Documents that are alike")
    repeated_lines: RepeatedLinesConfig = setting(RepeatedLinesConfig(), "Lines that many documents share")
    decontamination: DecontaminationConfig = setting(
        DecontaminationConfig(), "Texts of evaluation, which must not be learned"
    )
    validation_fraction: float = setting(
        0.01, "Share of distinct documents held out, chosen by content hash", unit="share", gt=0, lt=1
    )
    test_fraction: float = setting(
        0.0, "Share held out that nothing looks at before the end", unit="share", ge=0, lt=1
    )
    split_seed: int = setting(0, "Changes which documents are held out", ge=0, le=MAX_SEED)
    tokenizer: TokenizerConfig = setting(TokenizerConfig(), "The byte-level BPE tokenizer")
    incremental: bool = setting(
        False,
        "Files that come later go behind those that were there: their shards and the tokenizer stay",
        identity=False,  # which files came when decides, by their digests
    )
    shard_bytes: int = setting(
        64_000_000, "Most text of a shard, but for a single larger file", unit="bytes", ge=1
    )
    memory_bytes: int = setting(
        1_000_000_000,
        "Memory of the steps that look at all documents, which go to the disk beyond it",
        unit="bytes",
        ge=64_000_000,
        identity=False,
    )
    workers: int = setting(0, "Shards worked on at a time; 0: one for each core", ge=0, identity=False)
    executor: Literal["auto", "threads", "processes", "ray"] = setting(
        "auto", "What works on a shard; auto: threads for little work, processes for much", identity=False
    )
    ray_address: str = setting(
        "",
        "Ray cluster whose machines see the same files, host:port; empty: one on this machine while it works",
        identity=False,
    )

    @model_validator(mode="after")
    def _address_is_no_secret(self) -> DataConfig:
        if userinfo(self.ray_address) or holds_secret(self.ray_address):
            raise ValueError("ray_address holds a user name, password or token; leave it out")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> DataConfig:
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"each source needs a name of its own; found {names}")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                "validation_fraction and test_fraction leave nothing to train on; expected a sum below 1, "
                f"found {self.validation_fraction + self.test_fraction:g}"
            )
        return self


def swiglu_block(size: int) -> int:
    """Rows of the gate, and of up, that follow one another in SwiGLU's first matrix, for ``size`` of each."""
    # Shorter runs in memory are slower to multiply: 16 take three times as long as 64.
    return next(block for block in range(64, 0, -1) if size % block == 0)


class RopeScalingConfig(Config):
    """Rotary positions that reach further than at first, as Llama 3.1 has them."""

    factor: float = setting(1.0, "Slow rotations are slowed by this; 1: none is", unit="ratio", ge=1)
    low_freq_factor: float = setting(
        1.0,
        "Slow: up to this in original_max_seq_len; those in between are slowed in part",
        unit="turns",
        gt=0,
    )
    high_freq_factor: float = setting(4.0, "Fast, and left alone: from this on", unit="turns", gt=0)
    original_max_seq_len: int = setting(8_192, "Longest sequence at first", unit="tokens", ge=2)

    @model_validator(mode="after")
    def _slow_is_below_fast(self) -> RopeScalingConfig:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} must be below "
                f"high_freq_factor {self.high_freq_factor}"
            )
        return self


class MoEConfig(Config):
    """A mixture of experts in place of the MLP of some blocks; off where there are no experts."""

    num_experts: int = setting(0, "Experts of a mixture, of which a token visits a few; 0: plain MLPs", ge=0)
    num_experts_per_token: int = setting(2, "Experts that each token visits", unit="experts", ge=1)
    intermediate_size: int | None = setting(
        None, "Width of an expert; empty: that of the MLP", unit="dimensions", ge=1
    )
    num_shared_experts: int = setting(0, "Experts that every token visits besides", unit="experts", ge=0)
    score: Literal["softmax", "sigmoid"] = setting(
        "sigmoid", "How the router's logits become scores: over all experts, or each alone"
    )
    normalize_top_k: bool = setting(True, "Divide the scores of a token's experts by their sum")
    num_dense_layers: int = setting(0, "First blocks that keep a plain MLP", unit="layers", ge=0)
    layer_interval: int = setting(
        1, "Every so many blocks one has a mixture, the last of them", unit="layers", ge=1
    )
    balance: Literal["bias", "auxiliary", "none"] = setting(
        "bias",
        "What evens out the experts' load: a bias on the choice alone, or a loss on each sequence's scores",
    )
    bias_update_rate: float = setting(
        1e-3, "How far a step moves each expert's bias, towards an even load", unit="score", gt=0
    )
    auxiliary_loss_weight: float = setting(1e-2, "Weight of the auxiliary loss", ge=0)

    @model_validator(mode="after")
    def _experts_suffice(self) -> MoEConfig:
        if self.num_experts and self.num_experts_per_token > self.num_experts:
            raise ValueError(
                f"num_experts_per_token {self.num_experts_per_token} is more than num_experts "
                f"{self.num_experts}; use at most {self.num_experts}"
            )
        if self.num_experts and self.num_experts_per_token == 1 and self.normalize_top_k:
            raise ValueError(
                "with num_experts_per_token 1 a normalised score is always 1, and the router learns nothing; "
                "set normalize_top_k: false"
            )
        return self

    def replaces_mlp(self, layer: int) -> bool:
        """Whether block ``layer`` (from 0) has a mixture."""
        return (
            self.num_experts > 0 and layer >= self.num_dense_layers and (layer + 1) % self.layer_interval == 0
        )


class ModelConfig(Config):
    """A decoder-only Transformer by composition."""

    num_layers: int = setting(2, "Transformer blocks", unit="layers", ge=1)
    hidden_size: int = setting(192, "Width of the residual stream", unit="dimensions", ge=1)
    num_heads: int = setting(3, "Query heads", unit="heads", ge=1)
    num_kv_heads: int | None = setting(
        None, "Key and value heads; empty: as many as query heads", unit="heads", ge=1
    )
    head_dim: int | None = setting(
        None, "Width of a head; empty: hidden_size / num_heads", unit="dimensions", ge=2
    )
    intermediate_size: int | None = setting(
        None, "Width of the MLP; empty: 4 x hidden_size, or 8/3 for SwiGLU", unit="dimensions", ge=1
    )
    max_seq_len: int = setting(128, "Longest sequence the model is made for", unit="tokens", ge=2)
    position: Literal["rope", "learned"] = setting("rope", "Rotary or learned positions")
    rope_theta: float = setting(10_000.0, "Base of the rotary frequencies", gt=1)
    rope_scaling: RopeScalingConfig = setting(RopeScalingConfig(), "How far rotary positions reach")
    norm: Literal["rmsnorm", "layernorm"] = setting("rmsnorm", "Normalisation")
    norm_eps: float = setting(1e-5, "Added to the variance", gt=0)
    activation: Activation = setting(
        "relu2",
        "Activation of the MLP; gelu is GPT-2's, by tanh, and gelu_erf the exact one, which is not exported",
    )
    qk_norm: bool = setting(True, "Normalise queries and keys of each head")
    bias: bool = setting(False, "Biases in linear layers")
    tie_embeddings: bool = setting(True, "Share the input embedding with the output head")
    dropout: float = setting(0.0, "Dropout", unit="share", ge=0, lt=1)
    init_std: float = setting(0.02, "Standard deviation of initial weights", gt=0)
    zero_init_projections: bool = setting(
        True, "Start the last projection of each block, and the head unless tied, at zero"
    )
    vocab_multiple: int = setting(
        1,
        "Train with rows of the vocabulary up to a multiple of this, which GPUs multiply faster; those added "
        "are never predicted and no part of the finished model",
        unit="rows",
        ge=1,
    )
    moe: MoEConfig = setting(MoEConfig(), "A mixture of experts in place of MLPs")

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelConfig:
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}; "
                f"use {_nearest_multiples(self.hidden_size, self.num_heads)}, or set head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.kv_heads}")
        if self.position == "rope" and self.head_size % 2:
            raise ValueError(f"rotary positions need an even head_dim; found {self.head_size}")
        return self

    @model_validator(mode="after")
    def _experts_fit(self) -> ModelConfig:
        if not self.moe.num_experts:
            return self
        if self.bias:
            raise ValueError("experts have no biases: with moe.num_experts, set bias: false")
        if not any(map(self.moe.replaces_mlp, range(self.num_layers))):
            raise ValueError(
                f"none of the {self.num_layers} layers has experts: moe.num_dense_layers is "
                f"{self.moe.num_dense_layers} and moe.layer_interval {self.moe.layer_interval}; lower them"
            )
        return self

    @property
    def head_size(self) -> int:
        """Width of a head, in dimensions."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_kv_heads or self.num_heads

    def vocab_rows(self, vocab_size: int) -> int:
        """Rows of the embedding and the head, those included that are added to reach a multiple."""
        return -(-vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def unpadded(self) -> ModelConfig:
        """The same model without added rows."""
        return self.model_copy(update={"vocab_multiple": 1})

    @property
    def mlp_size(self) -> int:
        """Width of the MLP, in dimensions; SwiGLU's is rounded up to a multiple of 64."""
        if self.intermediate_size:
            return self.intermediate_size
        if self.activation == "swiglu":
            return 64 * math.ceil(self.hidden_size * 8 / 3 / 64)
        return 4 * self.hidden_size

    @property
    def expert_size(self) -> int:
        """Width of an expert, in dimensions."""
        return self.moe.intermediate_size or self.mlp_size

    @property
    def mlp_block(self) -> int:
        """Rows of SwiGLU's gate, and of up, that follow one another in its first matrix; 1 for the others."""
        if self.activation != "swiglu":
            return 1
        return swiglu_block(self.mlp_size)


class OptimizerConfig(Config):
    """One of torch's optimizers for everything, or Muon for matrices and AdamW for the rest."""

    name: Literal["adamw", "adam", "adafactor", "sgd", "muon"] = setting(
        "muon", "Optimizer; muon moves the matrices inside the blocks but routers, and AdamW the rest"
    )
    learning_rate: float = setting(0.008, "Peak learning rate, but for what Muon moves", gt=0)
    embedding_learning_rate_ratio: float = setting(
        1.0, "Learning rate of the input embedding over `learning_rate`", unit="ratio", gt=0
    )
    head_learning_rate_ratio: float = setting(
        1.0, "Learning rate of an untied head over `learning_rate`", unit="ratio", gt=0
    )
    muon_learning_rate: float = setting(0.03, "Peak learning rate of Muon", gt=0)
    muon_momentum: float = setting(0.95, "Momentum of Muon", ge=0, lt=1)
    sgd_momentum: float = setting(0.9, "Momentum of SGD, with Nesterov's look ahead", ge=0, lt=1)
    beta1: float = setting(0.9, "Decay of the first moment of Adam and AdamW", ge=0, lt=1)
    beta2: float = setting(0.95, "Decay of the second moment of Adam and AdamW", ge=0, lt=1)
    eps: float = setting(1e-8, "Added to the denominator of Adam and AdamW", gt=0)
    weight_decay: float = setting(
        0.0, "Of the roles below: taken off the weights, or by Adam and SGD added to the gradient", ge=0
    )
    decayed_roles: tuple[Role, ...] = setting(
        ("matrix", "embedding", "head"), "Parameters that decay; the others never do"
    )
    max_grad_norm: float = setting(1.0, "Clip the global gradient norm; 0: off", ge=0)
    offload: bool = setting(
        False,
        "Keep the moments in the host's memory; each visits the GPU for its part of a step",
        identity=False,
    )

    @model_validator(mode="after")
    def _roles_differ(self) -> OptimizerConfig:
        if len(set(self.decayed_roles)) != len(self.decayed_roles):
            raise ValueError(f"decayed_roles: each may be named once; found {list(self.decayed_roles)}")
        return self


class ScheduleConfig(Config):
    """Learning rate over steps, as a factor of its peak."""

    name: Literal["cosine", "linear", "wsd", "inverse_sqrt"] = setting(
        "wsd", "Cosine, straight line, warmup-stable-decay, or inverse square root"
    )
    warmup_steps: int = setting(10, "Linear warmup", unit="steps", ge=0)
    decay_fraction: float = setting(
        0.7, "Share of the steps spent in the final linear decay (wsd)", unit="share", ge=0, le=1
    )
    min_ratio: float = setting(
        0.0,
        "What the factor falls towards, one step after the last; of inverse_sqrt: its least",
        unit="ratio",
        ge=0,
        le=1,
    )


class ParallelConfig(Config):
    """How the work is divided over processes.

    The result does not depend on it, but in bf16 and fp16 for whether FSDP2 computes: it does so in that type
    throughout, autocast leaves norms and the residual stream in fp32.
    """

    dp_replicate: int = setting(
        2,
        "Replicas that each hold all weights (DDP; with any other kind: HSDP)",
        unit="processes",
        ge=1,
        identity=False,
    )
    dp_shard: int = setting(
        1, "Processes that share one copy of the weights (FSDP2)", unit="processes", ge=1, identity=False
    )
    tp: int = setting(
        1,
        "Processes that share each matrix and the vocabulary (tensor)",
        unit="processes",
        ge=1,
        identity=False,
    )
    sequence_parallel: bool = setting(
        True, "With tp: what lies between matrices is divided too, along the sequence", identity=False
    )
    pp: int = setting(
        1,
        "Processes that share the blocks, one behind another (pipeline)",
        unit="processes",
        ge=1,
        identity=False,
    )
    pipeline_schedule: Literal["1f1b", "gpipe", "interleaved_1f1b", "interleaved_zero_bubble", "zbv"] = (
        setting(
            "1f1b", "Order of forward and backward passes over the micro-batches of a step", identity=False
        )
    )
    stages_per_process: int = setting(
        0,
        "Pieces of the pipeline that a process holds; 0: two where the schedule interleaves them, else one",
        unit="stages",
        ge=0,
        identity=False,
    )
    cp: int = setting(
        1, "Processes that share each sequence (context)", unit="processes", ge=1, identity=False
    )
    ep: int = setting(
        1,
        "Processes that share the experts of a mixture; they are some of those of dp_shard x cp",
        unit="processes",
        ge=1,
        identity=False,
    )

    @property
    def num_processes(self) -> int:
        """World size."""
        return self.dp * self.cp * self.tp * self.pp

    @property
    def dp(self) -> int:
        """Processes that compute different sequences at the same place of the pipeline."""
        return self.dp_replicate * self.dp_shard

    @property
    def num_stages(self) -> int:
        """Pieces of the pipeline, over all processes; without one the model is in one piece."""
        if self.pp == 1:
            return 1
        return self.pp * (
            self.stages_per_process or (1 if self.pipeline_schedule in ("1f1b", "gpipe") else 2)
        )

    @property
    def is_sharded(self) -> bool:
        """Whether a process does not hold all weights and compute whole sequences, as with DDP or alone."""
        return self.num_processes != self.dp_replicate


class LaunchConfig(Config):
    """How processes are started and stopped."""

    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Where to compute", identity=False)
    threads_per_process: int = setting(
        0, "CPU threads of each process; 0: cores / processes", unit="threads", ge=0, identity=False
    )
    grace_seconds: float = setting(
        60.0, "Time to save after a request to stop", unit="seconds", ge=0, identity=False
    )
    stall_seconds: float = setting(
        600.0, "Collectives that take longer are an error", unit="seconds", gt=0, identity=False
    )
    max_restarts: int = setting(
        0, "Restarts from the last checkpoint after a worker dies", unit="restarts", ge=0, identity=False
    )
    verify_seconds: float = setting(
        60.0,
        "Most time at the start to hash the token files and compare them with their manifest; 0: not at all",
        unit="seconds",
        ge=0,
        identity=False,
    )


class CostsConfig(Config):
    """What is measured of what a step costs, and what a unit of it is charged at."""

    every_steps: int = setting(
        10,
        "Steps over which shares of time, memory and energy are taken, as rows of events; 0: never",
        unit="steps",
        ge=0,
        identity=False,
    )
    peak_tflops: float | None = setting(
        None,
        "Peak of one device, which MFU is a share of; empty: the vendor's for the type of computing",
        unit="TFLOP/s",
        gt=0,
        identity=False,
    )
    measure_peak: Literal["auto", "always", "never"] = setting(
        "auto",
        "Take the peak from a matrix product before the first step; auto: where no vendor's figure is known",
        identity=False,
    )
    sample_communication: bool = setting(
        True,
        "Profile a step now and then, for the share of time in which communication alone is under way",
        identity=False,
    )
    price_per_device_hour: float | None = setting(
        None,
        "Price of a device: a GPU, or a process on CPU; empty: not said",
        unit="per hour",
        ge=0,
        identity=False,
    )
    price_per_kwh: float | None = setting(
        None,
        "Price of electricity, on top of the devices'; empty: not said",
        unit="per kWh",
        ge=0,
        identity=False,
    )
    currency: str = setting("USD", "Of the prices", pattern=r"^[A-Z]{3}$", identity=False)
    grams_co2_per_kwh: float | None = setting(
        None,
        "Carbon dioxide of electricity where it is used; empty: not said",
        unit="g/kWh",
        ge=0,
        identity=False,
    )


class ProfileConfig(Config):
    """A trace of some steps by torch's profiler, in the run's directory and artifacts."""

    start_step: int = setting(
        0, "First step that is traced, from 1; 0: none", unit="steps", ge=0, identity=False
    )
    steps: int = setting(3, "Steps that are traced", unit="steps", ge=1, le=100, identity=False)
    ranks: tuple[int, ...] = setting((0,), "Processes that write a trace", identity=False)

    @model_validator(mode="after")
    def _ranks_count_from_zero(self) -> ProfileConfig:
        if any(rank < 0 for rank in self.ranks):
            raise ValueError(f"profile: ranks count from 0; found {list(self.ranks)}")
        return self


class MixtureConfig(Config):
    """What one source gives to the training."""

    source: str = setting(..., "Name of the source")
    weight: float = setting(1.0, "Share of the tokens, relative to the other weights", gt=0)
    # Up to four passes are nearly as good as new text (Muennighoff et al. 2023).
    max_epochs: float | None = setting(
        4.0,
        "Stop after this many passes over the source and let the others share its weight; empty: no limit",
        unit="epochs",
        gt=0,
    )


class TrainConfig(Config):
    """One training run."""

    steps: int = setting(400, "Optimizer steps", unit="steps", ge=1)
    seq_len: int = setting(128, "Tokens of a sequence", unit="tokens", ge=2)
    global_batch_tokens: int = setting(
        4_096, "Tokens of one optimizer step, over all processes", unit="tokens", ge=2
    )
    micro_batch_size: int = setting(
        16,
        "Sequences that one process computes at a time; 0: the most that fit into memory, found at the start",
        unit="sequences",
        ge=0,
        identity=False,
    )
    precision: Literal["fp32", "bf16", "fp16", "fp8"] = setting(
        "fp32",
        "Type of the computation; weights and reductions stay fp32. fp8: of products inside blocks, the rest "
        "is bf16; for GPUs of compute capability 8.9 and newer",
    )
    activation_checkpointing: Literal["none", "selective", "full"] = setting(
        "none",
        "full: blocks keep their inputs alone, and compute the rest again when going back; selective: they "
        "keep matrix products and attention too, and compute again what is cheap",
        identity=False,
    )
    loss_chunk_tokens: int | None = setting(
        None,
        "Most tokens of a micro-batch whose logits there are at a time; 0: all; empty: by their size",
        unit="tokens",
        ge=0,
        identity=False,
    )
    initial_loss_scale: float = setting(65_536.0, "First loss scale (fp16)", ge=1)
    document_mask: bool = setting(
        False, "Attention sees only its own document, and positions restart at its start"
    )
    packing: Literal["chunk", "best_fit"] = setting(
        "chunk",
        "Cut the concatenated documents every seq_len tokens, or cut only longer ones and pack the pieces",
    )
    mixture: tuple[MixtureConfig, ...] = setting(
        (), "Sources to learn from, and their shares; empty: all documents, each once an epoch"
    )
    seed: int = setting(0, "Initial weights and order of the data", ge=0, le=MAX_SEED)
    initial_weights: str = setting(
        "",
        "Directory of a Hugging Face model to go on from; empty: drawn from the seed",
        identity=False,  # what it holds decides, by its digest
    )
    z_loss: float = setting(
        0.0, "Weight of the squared logarithm of the softmax's denominator, which keeps logits small", ge=0
    )
    ema_decay: float = setting(
        0.0,
        "Decay of a moving average of the weights, which is then what is validated and kept; 0: off",
        ge=0,
        lt=1,
    )
    compile: Literal["auto", "blocks", "off"] = setting(
        "auto",
        "Have torch compile each block, for the shapes of the run; auto: on GPUs, for dense models without "
        "tp and runs of 200 steps or more",
        identity=False,
    )
    cuda_graphs: bool = setting(
        False,
        "Have the GPU replay what it is told to do in a compiled block, for models so small that telling it "
        "takes longer; costs memory",
        identity=False,
    )
    attention: Literal[
        "auto", "sdpa", "math", "efficient", "flash", "cudnn", "flash3", "flex", "products"
    ] = setting(
        "auto",
        "What computes attention; auto: the fastest that is there. sdpa: torch's own choice; flash3: "
        "FlashAttention 3, if it is installed; flex: documents by blocks (GPUs); products: scores of all "
        "pairs, for short sequences (CPUs)",
        identity=False,
    )
    prefetch_steps: int | None = setting(
        None,
        "Steps whose batches are read ahead on a thread of their own; 0: each is read when it is needed; "
        "empty: 2 for GPUs, 0 for CPUs, which have no core to spare",
        unit="steps",
        ge=0,
        identity=False,
    )
    collect_garbage_every: int = setting(
        50,
        "Steps between collections of Python's garbage, the same in all processes; 0: when Python likes",
        unit="steps",
        ge=0,
        identity=False,
    )
    spike_z_score: float = setting(
        8.0,
        "Robust z-score, among the last 128 steps, from which a loss is told as a spike; 0: none is",
        ge=0,
        identity=False,
    )
    check_replicas_every: int = setting(
        100,
        "Steps between comparisons of the replicas of dp_replicate, bit by bit; 0: before checkpoints alone",
        unit="steps",
        ge=0,
        identity=False,
    )
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "Optimizer")
    schedule: ScheduleConfig = setting(ScheduleConfig(), "Learning rate over steps")
    parallel: ParallelConfig = setting(
        ParallelConfig(), "How the work is divided over processes", identity=False
    )
    launch: LaunchConfig = setting(LaunchConfig(), "How processes are started and stopped", identity=False)
    validate_every: int = setting(
        100, "Steps between validations; 0: only at the end", unit="steps", ge=0, identity=False
    )
    validation_tokens: int = setting(
        32_768, "Tokens of a validation during training", unit="tokens", ge=1, identity=False
    )
    checkpoint_every: int = setting(
        100, "Steps between checkpoints; 0: only at the end", unit="steps", ge=0, identity=False
    )
    keep_checkpoints: int = setting(2, "Newest checkpoints kept", unit="checkpoints", ge=1, identity=False)
    costs: CostsConfig = setting(CostsConfig(), "What a step costs", identity=False)
    profile: ProfileConfig = setting(ProfileConfig(), "A trace of some steps", identity=False)

    @model_validator(mode="after")
    def _warmup_ends(self) -> TrainConfig:
        if self.schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} leaves nothing of {self.steps} steps; "
                f"use at most {self.steps - 1}"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainConfig:
        if self.global_batch_tokens % self.seq_len:
            raise ValueError(
                f"global_batch_tokens {self.global_batch_tokens} is not a whole number of sequences of "
                f"{self.seq_len} tokens; use {_nearest_multiples(self.global_batch_tokens, self.seq_len)}"
            )
        ranks = self.parallel.dp
        if self.global_batch_size % ranks:
            raise ValueError(
                f"global batch of {self.global_batch_size} sequences is not divisible by {ranks} processes "
                f"(dp_replicate x dp_shard); "
                f"use global_batch_tokens "
                f"{_nearest_multiples(self.global_batch_tokens, ranks * self.seq_len)}"
            )
        if self.micro_batch_size and self.sequences_per_process % self.micro_batch_size:
            raise ValueError(
                f"{self.sequences_per_process} sequences of a process are not divisible by "
                f"micro_batch_size {self.micro_batch_size}; "
                f"use {_nearest_divisor(self.sequences_per_process, self.micro_batch_size)}"
            )
        return self

    @model_validator(mode="after")
    def _sources_differ(self) -> TrainConfig:
        names = [share.source for share in self.mixture]
        if len(set(names)) != len(names):
            raise ValueError(f"mixture: each source may be named once; found {names}")
        return self

    @property
    def global_batch_size(self) -> int:
        """Sequences of one optimizer step, over all processes."""
        return self.global_batch_tokens // self.seq_len

    @property
    def sequences_per_process(self) -> int:
        """Sequences of one optimizer step that one process, or those that share it, computes."""
        return self.global_batch_size // self.parallel.dp

    @property
    def grad_accum_steps(self) -> int:
        """Micro-batches that one process adds up before a step; 0: not known yet."""
        return self.sequences_per_process // self.micro_batch_size if self.micro_batch_size else 0


class SamplingConfig(Config):
    """How text is drawn from a model."""

    max_new_tokens: int = setting(120, "Longest continuation", unit="tokens", ge=1)
    temperature: float = setting(0.8, "0: always the likeliest token", ge=0)
    top_k: int = setting(50, "Draw from this many likeliest tokens; 0: all", unit="tokens", ge=0)
    top_p: float = setting(0.95, "Draw from the likeliest tokens that hold this probability", gt=0, le=1)
    seed: int = setting(0, "Seed of the draws", ge=0, le=MAX_SEED)


class GateConfig(Config):
    """When a model may take the champion's place."""

    min_improvement: float = setting(
        0.0, "Bits per byte that a challenger must gain on the champion", unit="bits per byte"
    )
    max_bits_per_byte: float | None = setting(
        None, "Never promote a worse model; empty: no limit", unit="bits per byte", gt=0
    )


class EvaluationSetConfig(Config):
    """What a model is measured on beside the validation split: texts, or minimal pairs."""

    name: str = setting(
        ...,
        "Name of this set, of its figures too",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$",
        max_length=MAX_NAME_CHARS - len(".good"),
    )
    kind: Literal["text", "minimal_pairs"] = setting(
        "text",
        "Texts are scored in bits per byte; pairs of a good and a bad sentence by the share whose good one "
        "is likelier (Warstadt et al. 2020, BLiMP)",
    )
    path: str = setting(
        ...,
        "Glob of files, local or an fsspec URL, as of a source; pairs: .jsonl (.gz, .zst) and .parquet",
        min_length=1,
        identity=False,  # which files there are decides, by their digests
    )
    text_field: str = setting("text", "Field or column that holds a text")
    good_field: str = setting("sentence_good", "Field or column that holds the good sentence of a pair")
    bad_field: str = setting("sentence_bad", "Field or column that holds the bad one")
    group_field: str = setting(
        "", "Field or column that names the group of a pair, as UID of BLiMP; empty: none"
    )
    max_bytes: int = setting(
        0, "Texts to score, from the first on, whole ones, at least one; 0: all", unit="bytes", ge=0
    )
    max_pairs: int = setting(0, "Pairs to score, from the first on; 0: all", unit="pairs", ge=0)

    @model_validator(mode="after")
    def _kind_fits(self) -> EvaluationSetConfig:
        own, other = ("max_bytes", "max_pairs") if self.kind == "text" else ("max_pairs", "max_bytes")
        if getattr(self, other):
            raise ValueError(
                f"evaluation set {self.name!r}: kind {self.kind!r} takes no {other}; set {own} instead"
            )
        if self.kind == "minimal_pairs" and self.good_field == self.bad_field:
            raise ValueError(
                f"evaluation set {self.name!r}: good_field and bad_field must differ; "
                f"found {self.good_field!r}"
            )
        if holds_secret(self.path):
            raise ValueError(
                f"evaluation set {self.name!r}: path holds a password or key; "
                "leave it out and give it as the file system's own environment variables"
            )
        return self

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """Its texts as sources: of minimal pairs first all that is good, then all that is bad."""
        fields = {self.name: self.text_field}
        if self.kind == "minimal_pairs":
            fields = {f"{self.name}.good": self.good_field, f"{self.name}.bad": self.bad_field}
        return tuple(
            SourceConfig(name=name, kind="files", path=self.path, text_field=field)
            for name, field in fields.items()
        )


class EvaluationConfig(Config):
    """How a model is measured."""

    sets: tuple[EvaluationSetConfig, ...] = setting(
        (), "What else the model is measured on; data.decontamination keeps its text out of what is learned"
    )
    stride_tokens: int = setting(
        64, "New tokens of each window of seq_len, at most all; the rest is context", unit="tokens", ge=1
    )
    max_bytes: int = setting(0, "Validation text to score; 0: all", unit="bytes", ge=0)
    prompts: tuple[str, ...] = setting(
        (
            "import os\n\ndef ",
            "class Queue:\n    def __init__(self",
            "def fibonacci(n):\n",
            '"""',
        ),
        "Beginnings that the model continues",
    )
    sampling: SamplingConfig = setting(SamplingConfig(), "How the continuations are drawn")
    gate: GateConfig = setting(GateConfig(), "When the model becomes champion", identity=False)
    micro_batch_size: int = setting(
        64, "Windows that one process computes at a time", unit="sequences", ge=1, identity=False
    )

    @model_validator(mode="after")
    def _names_differ(self) -> EvaluationConfig:
        names = [one.name for one in self.sets]
        if len(set(names)) != len(names):
            raise ValueError(f"each evaluation set needs a name of its own; found {names}")
        return self


class TrackingConfig(Config):
    """Where runs and models are recorded."""

    uri: str = setting("", "MLflow tracking server; empty: mlflow.db in GRISTMILL_HOME", identity=False)
    experiment: str = setting(
        "gristmill",
        "MLflow experiment, one for each project",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$",
        max_length=MAX_NAME_CHARS,
        identity=False,
    )
    model_name: str = setting(
        "",
        "Name of the registered model; empty: the recipe's name",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9 ._-]*)?$",
        max_length=MAX_NAME_CHARS,
        identity=False,
    )
    patience_seconds: float = setting(
        30.0,
        "How long the end of a run waits for a server that is away",
        unit="seconds",
        ge=0,
        identity=False,
    )

    @model_validator(mode="after")
    def _address_is_one(self) -> TrackingConfig:
        check_tracking_uri(self.uri)
        return self


class Recipe(Config):
    """A named, complete parameter set of the pipeline."""

    name: str = setting(
        "quickstart",
        "Name of the recipe",
        pattern=r"^[a-z0-9][a-z0-9._-]*$",
        max_length=MAX_NAME_CHARS,
        identity=False,
    )
    data: DataConfig = setting(DataConfig(), "From raw files to tokens")
    model: ModelConfig = setting(ModelConfig(), "The Transformer")
    train: TrainConfig = setting(TrainConfig(), "Training")
    evaluation: EvaluationConfig = setting(EvaluationConfig(), "How the model is measured")
    tracking: TrackingConfig = setting(TrackingConfig(), "Where runs and models are recorded", identity=False)

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        if self.train.seq_len > self.model.max_seq_len:
            raise ValueError(
                f"train.seq_len {self.train.seq_len} is longer than model.max_seq_len "
                f"{self.model.max_seq_len}; shorten one or lengthen the other"
            )
        if self.train.initial_weights and not self.data.tokenizer.path:
            raise ValueError(
                "train.initial_weights needs the tokenizer of its model, not a learned one; "
                f"set data.tokenizer.path, perhaps to {self.train.initial_weights}"
            )
        known = [source.name for source in self.data.sources]
        unknown = [share.source for share in self.train.mixture if share.source not in known]
        if unknown:
            raise ValueError(
                f"train.mixture names {', '.join(unknown)}, but data.sources are {', '.join(known)}"
            )
        if misfit := find_misfit(self.model, self.train):
            raise ValueError(misfit)
        names = [source.name for source in self.preparation.decontamination.sources]
        if len(set(names)) != len(names):
            raise ValueError(
                "each text of evaluation.sets and data.decontamination.sources needs a name of its own; "
                f"found {names}"
            )
        return self

    @property
    def preparation(self) -> DataConfig:
        """What data preparation is told: ``data``, and not to let the texts of ``evaluation.sets`` in."""
        wanted = self.data.decontamination
        if not (wanted.evaluation_sets and self.evaluation.sets):
            return self.data
        sources = (*wanted.sources, *(source for one in self.evaluation.sets for source in one.sources))
        wanted = wanted.model_copy(update={"sources": sources})
        return self.data.model_copy(update={"decontamination": wanted})


# --- reading ---------------------------------------------------------------------------------------

C = TypeVar("C", bound=Config)


def parse(kind: type[C], values: Mapping[str, Any], *, where: str) -> C:
    """Validate ``values`` as ``kind``.

    Raises:
        ConfigError: names every wrong key or value; a wrong key with the nearest right one.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        places = [problem["loc"] for problem in found]
        # A list without its wrong entries is "too short": that is told by what is wrong with them.
        inner = [p for p in found if not any(p["loc"] == place[: len(p["loc"])] != place for place in places)]
        problems = [_explain(kind, problem) for problem in inner]
        raise ConfigError(
            f"{where} is not a valid {kind.__name__.removesuffix('Config').lower()}",
            found="; ".join(problems),
        ) from None


def make_recipe(**parts: Any) -> Recipe:
    """Put the parameters of a flow together.

    Raises:
        ConfigError: they do not fit each other.
    """
    return parse(Recipe, parts, where="the parameters")


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe (YAML) and apply ``a.b=c`` overrides; values are YAML too.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is wrong.
    """
    try:
        values = read_settings(decode_settings(path.read_bytes()))
    except OSError as error:
        raise ConfigError(
            f"recipe {path} cannot be read",
            found=nearest(path) if isinstance(error, FileNotFoundError) else error.strerror or str(error),
            remedy="Give the name of a recipe, or the path of a YAML file.",
        ) from None
    except SettingsError as error:
        raise ConfigError(
            f"recipe {path} is not YAML", found=str(error), remedy="Mend the line it names."
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"recipe {path} is not a table",
            expected="keys like data, model, train",
            found="nothing" if values is None else repr(values)[:80],
        )
    for override in overrides:
        _apply(values, override)
    # Names alone: a value may be a secret.
    changed = "".join(f" --set {override.partition('=')[0]}" for override in overrides)
    recipe = parse(Recipe, values, where=f"recipe {path.name}{changed}")
    if "sources" not in values.get("data", {}):
        raise ConfigError(
            f"recipe {path.name} does not say what to learn from",
            expected="data.sources",
            found=", ".join(values) or "nothing",
            remedy="Name a source; flows/recipes/quickstart.yaml shows one.",
        )
    return recipe


def _apply(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {override!r} cannot be understood",
            expected="a.b=value",
            found=repr(override),
            remedy="For example --set train.steps=100.",
        )
    table: Any = values
    for key, below in itertools.pairwise(keys):
        index = _index(table, key, override)
        entry = table.setdefault(index, {}) if isinstance(table, dict) else table[index]
        if not isinstance(entry, list if below.isdigit() else dict):
            raise ConfigError(
                f"--set {override!r} goes below {key!r}",
                expected="a list that the recipe names" if below.isdigit() else "a table",
                found=f"{key} is {entry!r}"[:120],
            )
        table = entry
    try:
        value = read_setting(text)
    except SettingsError as error:
        raise ConfigError(
            f"the value of --set {path} cannot be read",
            expected="YAML, as in a recipe",
            found=str(error),
            remedy=f"""A text in quotes stands for itself: --set '{path}="..."'.""",
        ) from None
    table[_index(table, keys[-1], override)] = value


def _index(table: dict[str, Any] | list[Any], key: str, override: str) -> Any:
    if isinstance(table, dict):
        return key
    if int(key) >= len(table):
        raise ConfigError(
            f"--set {override!r} names an entry that is not there",
            expected=f"a number below {len(table)}",
            found=key,
        )
    return int(key)


# Pydantic's words for a wrong type, in those of a recipe.
_KINDS = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "model_type": "must be a table of settings",
    "model_attributes_type": "must be a table of settings",
    "dict_type": "must be a table of settings",
    "missing": "must be set",
}
# What other programs call a setting.
_SYNONYMS = {
    "lr": "learning_rate",
    "batch_size": "global_batch_tokens",
    "max_steps": "steps",
    "num_steps": "steps",
    "context_length": "seq_len",
    "block_size": "seq_len",
    "n_layer": "num_layers",
    "n_embd": "hidden_size",
    "n_head": "num_heads",
    "wd": "weight_decay",
}


def _explain(kind: type[Config], problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {path} ({_hint(kind, problem['loc'])})"
    message = problem["msg"].removeprefix("Value error, ")
    message = _KINDS.get(problem["type"]) or re.sub(r"^\w+ should ", "must ", message)
    value = problem.get("input")
    if problem["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
        message += f" (did you mean {near[0]}?)" if near else ""
    structured = isinstance(value, (dict, list, tuple, BaseModel))
    shown = "" if structured else f", found {value!r}"
    if problem["type"] == "string_type":
        shown += _how_to_quote(path, value)
    return f"{path}: {message}{shown}" if path else message


def _hint(kind: type[Config], loc: tuple[Any, ...]) -> str:
    """The right place of a key that is known elsewhere, else one that is called alike here."""
    key, known = str(loc[-1]), _fields_at(kind, loc[:-1])
    name = _SYNONYMS.get(key, key)
    for cutoff in (0.8, 0.5):
        if near := difflib.get_close_matches(name, known, n=1, cutoff=cutoff):
            return f"did you mean {near[0]}?"
        above = [str(part) for part in loc[:-1]]
        # Those below the same sections first; muon_learning_rate is a learning_rate, too.
        places = [place for place in _paths(kind, ()) if place[-1] == name or place[-1].endswith(f"_{name}")]
        places.sort(key=lambda place: (-_shared(place, above), place[-1] != name, len(place)))
        if places:
            best = [place for place in places if _shared(place, above) == _shared(places[0], above)][:3]
            return f"did you mean {' or '.join('.'.join(place) for place in best)}?"
    return "known here: " + ", ".join(known)


def _shared(place: Sequence[str], above: Sequence[str]) -> int:
    return len(
        [1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(place, above, strict=False))]
    )


def _paths(kind: type[Config], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every setting below ``kind``; of the entries of a list, those of the first."""
    for name, field in kind.model_fields.items():
        if nested := _config_class(field):
            listed = "tuple" in str(field.annotation)
            yield from _paths(nested, (*above, name, "0") if listed else (*above, name))
        else:
            yield (*above, name)


def _how_to_quote(path: str, value: Any) -> str:
    """Say what to do where YAML read something else than the text that was meant."""
    if value is None:
        return ' (an empty text is "")'
    quoted = '"..."' if isinstance(value, (dict, list, tuple, BaseModel)) else f'"{json.dumps(value)}"'
    kind = _YAML_KINDS.get(type(value), "something else")
    return f" (a text that looks like {kind} needs quotes: {quoted}, or --set '{path}={quoted}')"


def _fields_at(kind: type[Config], loc: Iterable[Any]) -> list[str]:
    for part in loc:
        field = kind.model_fields.get(str(part))
        nested = _config_class(field) if field else None
        if nested:
            kind = nested
    return list(kind.model_fields)


def _config_class(field: FieldInfo) -> type[Config] | None:
    stack: list[Any] = [field.annotation]
    while stack:
        annotation = stack.pop()
        if isinstance(annotation, type) and issubclass(annotation, Config):
            return annotation
        stack.extend(getattr(annotation, "__args__", ()))
    return None


def _nearest_multiples(value: int, unit: int) -> str:
    below, above = value // unit * unit, (value // unit + 1) * unit
    return f"{below} or {above}" if below else str(above)


def _nearest_divisor(value: int, wish: int) -> int:
    return min((d for d in range(1, value + 1) if value % d == 0), key=lambda d: abs(d - wish))


# --- identity --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """The settings that decide a stage's result, as dotted paths.

    Attributes:
        values: Every such setting, defaults included; what an explanation compares.
        chosen: Those that differ from their default; what a key is made of, so that a new field with a
            default does not throw old work away.
    """

    values: dict[str, Json]
    chosen: dict[str, Json]


def identify(*paths: str, **sections: Config) -> Identity:
    """Collect the identity of ``sections``, limited to ``paths`` (a path takes all below it) if given.

    >>> identify("data.tokenizer", data=DataConfig()).chosen
    {}
    """
    values: dict[str, Json] = {}
    chosen: dict[str, Json] = {}
    for name, section in sections.items():
        for path, value, default in _leaves(section, name):
            if not paths or any(path == p or path.startswith(p + ".") for p in paths):
                values[path] = _plain(value)
                if values[path] != _plain(default):
                    chosen[path] = _sparse(value)
    return Identity(values, chosen)


def _leaves(section: Config, prefix: str) -> Iterable[tuple[str, Any, Any]]:
    """Path, value and default of each field that decides the result, through nested sections."""
    for name, field in type(section).model_fields.items():
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("identity") is False:
            continue
        value = getattr(section, name)
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(value, Config):
            yield from _leaves(value, path)
        else:
            yield path, value, field.get_default()


def _plain(value: Any) -> Json:
    if isinstance(value, Config):
        return {path: _plain(leaf) for path, leaf, _ in _leaves(value, "")}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _sparse(value: Any) -> Json:
    # In the items of a list too, a new field with a default must not throw old work away.
    if isinstance(value, Config):
        return {path: _sparse(leaf) for path, leaf, base in _leaves(value, "") if leaf != base}
    if isinstance(value, (tuple, list)):
        return [_sparse(item) for item in value]
    return value
