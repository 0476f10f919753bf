"""Mask what a model or a national form tells (names, places, accounts): by Presidio, an optional extra.

Nothing is downloaded: spaCy's model must be installed. Long texts are looked at piece by piece, cut at line
ends, so what goes on over the end of a piece of 100,000 characters is found in parts or not at all.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import importlib.util
import re
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

from lmcore.config import PresidioConfig
from lmcore.errors import ConfigError

_PIECE_CHARS = 100_000
_PLACEHOLDER = re.compile(r"<[A-Z_]+>")
# Its recognizer asks the network for a list of domains.
_REFUSED = {"EMAIL": "emails", "EMAIL_ADDRESS": "emails"}
_ANALYZING = threading.Lock()  # spaCy's tables of strings grow while it reads
_LIBRARIES = ("presidio-analyzer", "spacy", "phonenumbers")
_MODULES = ("presidio_analyzer", "spacy", "threadpoolctl")
_ENTITY_PIPES = {"ner", "beam_ner", "entity_ruler", "span_ruler"}
_ANY_LANGUAGE = "xx"


def presidio_libraries(config: PresidioConfig) -> tuple[str, ...]:
    """Distributions that decide what is found; none if nothing is asked for."""
    return (*_LIBRARIES, *([config.model] if config.model else [])) if config.entities else ()


def check_installed(config: PresidioConfig) -> None:
    """Look for what ``config`` takes, without loading it.

    Raises:
        ConfigError: Presidio or the model is not installed.
    """
    if not config.entities:
        return
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            "data.privacy.presidio names entities, and Presidio is not installed",
            expected="the extra `privacy`",
            found="no " + " and no ".join(missing),
            remedy="pip install -e '.[privacy]' in the checkout, or leave entities empty.",
        )
    # A folder would do for spaCy, but would have no version for the shards' keys.
    if config.model and not _is_installed(config.model):
        raise ConfigError(
            f"data.privacy.presidio.model {config.model!r} is not installed",
            expected="a package of spaCy",
            found="none of that name",
            remedy=f"python -m spacy download {config.model}, or set it to '' to look for forms alone.",
        )


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False
    return True


def mask_entities(text: str, config: PresidioConfig, counted: Counter[str]) -> str:
    """Replace the entities of ``config`` in ``text`` by placeholders such as ``<PERSON>``, and count them.

    Of findings that overlap the most certain stays, then the longest, then the first. Placeholders that are
    in the text stay as they are.

    Raises:
        ConfigError: Presidio or the model is not installed, or an entity is not known.
    """
    parts = []
    for piece in _pieces(text):
        found = _found(piece, config)
        taken = [match.span() for match in _PLACEHOLDER.finditer(piece)]
        chosen: list[Any] = []
        for one in sorted(found, key=_rank):
            if all(one.end <= start or one.start >= end for start, end in taken):
                taken.append((one.start, one.end))
                chosen.append(one)
        end = 0
        for one in sorted(chosen, key=lambda one: one.start):
            parts += [piece[end : one.start], f"<{one.entity_type}>"]
            counted[one.entity_type.lower()] += 1
            end = one.end
        parts.append(piece[end:])
    return "".join(parts)


def _found(piece: str, config: PresidioConfig) -> list[Any]:
    from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingImports]

    # Two processes of two threads each took up to twice as long, and sums depend on the number of threads.
    with _ANALYZING, threadpool_limits(1, user_api="blas"):
        analyzer = _analyzer_for(config)  # pyright: ignore[reportArgumentType] -- frozen, so it has a hash
        # Its tables would grow with every word that it has not seen before.
        with analyzer.nlp_engine.get_nlp(config.language).memory_zone():
            return analyzer.analyze(
                text=piece,
                language=config.language,
                entities=list(config.entities),
                score_threshold=config.min_score,
            )


def _rank(found: Any) -> tuple[float, int, int, str]:
    return -found.score, found.start - found.end, found.start, found.entity_type


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE_CHARS:
        end = text.rfind("\n", start, start + _PIECE_CHARS) + 1 or start + _PIECE_CHARS
        yield text[start:end]
        start = end
    yield text[start:]


@functools.cache
def _analyzer_for(config: PresidioConfig) -> Any:
    """Presidio, which knows all entities of ``config``."""
    check_installed(config)
    analyzer = _analyzer(config.model, config.language)
    _check_entities(config, analyzer)
    return analyzer


@functools.cache
def _analyzer(model: str, language: str) -> Any:
    """Presidio with a model; each process loads it once."""
    import spacy  # pyright: ignore[reportMissingImports]
    from presidio_analyzer import AnalyzerEngine  # pyright: ignore[reportMissingImports]
    from presidio_analyzer.nlp_engine import (  # pyright: ignore[reportMissingImports]
        NerModelConfiguration,
        SpacyNlpEngine,
    )

    try:
        nlp = spacy.load(model) if model else spacy.blank(language)
    except (OSError, ImportError, ValueError, AttributeError) as error:
        name = "model" if model else "language"
        raise ConfigError(
            f"spaCy cannot read data.privacy.presidio.{name} {model or language!r}",
            found=str(error).splitlines()[0],
            remedy="Name one that it has: https://spacy.io/usage/models.",
        ) from error
    if nlp.lang not in (language, _ANY_LANGUAGE):
        raise ConfigError(
            f"data.privacy.presidio.model {model!r} reads another language",
            expected=f"one of data.privacy.presidio.language {language!r}",
            found=str(nlp.lang),
            remedy=f"Set language to {nlp.lang}, or name another model.",
        )
    # It warns of every entity of a kind that it has no name for.
    named = NerModelConfiguration().model_to_presidio_entity_mapping or {}
    nameless = _labels(nlp) - named.keys()
    engine = SpacyNlpEngine(
        models=[{"lang_code": language, "model_name": model}],
        ner_model_configuration=NerModelConfiguration(labels_to_ignore=sorted(nameless)),
    )
    engine.nlp = {language: nlp}  # loaded: it would download what it does not find
    return AnalyzerEngine(nlp_engine=engine, supported_languages=[language])


def _labels(nlp: Any) -> set[str]:
    """Kinds of entities that the model tells, under its own names."""
    pipes = [name for name in nlp.pipe_names if nlp.get_pipe_meta(name).factory in _ENTITY_PIPES]
    return {label for name in pipes for label in nlp.pipe_labels.get(name, ())}


def _check_entities(config: PresidioConfig, analyzer: Any) -> None:
    by_form: set[str] = set()
    by_model: set[str] = set()
    for recognizer in analyzer.get_recognizers(config.language):
        has_model = type(recognizer).__name__ == "SpacyRecognizer"
        (by_model if has_model else by_form).update(recognizer.supported_entities)
    # It names all that any model could tell.
    names = analyzer.nlp_engine.ner_model_configuration.model_to_presidio_entity_mapping
    told = {names[label] for label in _labels(analyzer.nlp_engine.get_nlp(config.language)) & names.keys()}
    known = (by_form | told) - set(_REFUSED)
    for entity in config.entities:
        if entity in _REFUSED:
            raise ConfigError(
                f"data.privacy.presidio does not look for {entity}: Presidio would ask the network",
                remedy=f"Set data.privacy.{_REFUSED[entity]} to true instead.",
            )
        if entity not in known:
            near = difflib.get_close_matches(entity, known, n=1)
            takes = ", which takes a model that tells it" if entity in by_model else ""
            raise ConfigError(
                f"data.privacy.presidio.entities names {entity!r}, which cannot be found",
                expected=", ".join(sorted(known)),
                found=entity + takes,
                remedy="Set data.privacy.presidio.model to one."
                if takes
                else f"Write {near[0]}."
                if near
                else "Write one of those.",
            )
