"""Mask what names a person or opens something: addresses, numbers, keys; each by a placeholder of its kind.

What has check digits is checked (cards: Luhn), and IP addresses are masked only where they are public: the
local ones of a manual stay. This finds well-known forms; names and places need a model
(``lmcore.data.presidio``).
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lmcore.config import PrivacyConfig


class Kind(NamedTuple):
    """A kind of what is masked.

    Attributes:
        name: Its setting in ``data.privacy``.
        hint: A character that every one of them holds; a text without it is not searched.
        pattern: What it looks like.
        holds: Whether a match is really one.
    """

    name: str
    hint: str
    pattern: re.Pattern[str]
    holds: Callable[[str], bool] = lambda match: True

    @property
    def placeholder(self) -> str:
        """What takes its place."""
        return f"<{self.name.upper().rstrip('S')}>"


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _is_card(text: str) -> bool:
    """Whether the digits of ``text`` have a card's length, first digits and check digit (ISO/IEC 7812)."""
    digits = [int(character) for character in text if character.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def _is_phone(text: str) -> bool:
    """Whether ``text`` has as many digits as a number that can be dialled (ITU-T E.164)."""
    return 8 <= sum(map(str.isdigit, text)) <= 15


_SECRETS = (
    r"(?:AKIA|ASIA)[0-9A-Z]{16}"  # AWS
    r"|gh[pousr]_[0-9A-Za-z]{36,}|github_pat_[0-9A-Za-z_]{60,}"
    r"|glpat-[0-9A-Za-z_-]{20,}"
    r"|xox[abposr]-[0-9A-Za-z-]{10,}"  # Slack
    r"|AIza[0-9A-Za-z_-]{35}"  # Google
    r"|sk-(?:ant-|proj-)?[0-9A-Za-z_-]{32,}"
    r"|hf_[0-9A-Za-z]{34,}"
    r"|npm_[0-9A-Za-z]{36}"
    r"|eyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{10,}"  # JSON web tokens
)
_PRIVATE_KEY = r"-----BEGIN [A-Z ]*PRIVATE KEY-----.{16,8000}?-----END [A-Z ]*PRIVATE KEY-----"

# In this order: what a later pattern could cut in two is taken first.
KINDS = (
    Kind("secrets", "-----BEGIN", re.compile(_PRIVATE_KEY, re.DOTALL)),
    Kind("secrets", "", re.compile(rf"(?<![0-9A-Za-z_-])(?:{_SECRETS})(?![0-9A-Za-z])")),
    Kind(
        "emails",
        "@",
        re.compile(
            r"(?<![0-9A-Za-z._%+-])[0-9A-Za-z._%+-]{1,64}@(?:[0-9A-Za-z](?:[0-9A-Za-z-]{0,62})\.){1,8}[A-Za-z]{2,24}"
            r"(?![0-9A-Za-z-])"
        ),
    ),
    Kind("cards", "", re.compile(r"(?<![\w.+-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d)"), _is_card),
    Kind(
        "ips", ".", re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)"), _is_public
    ),
    Kind(
        "ips", ":", re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:.])"), _is_public
    ),
    Kind("phones", "+", re.compile(r"(?<![\w+])\+[1-9](?:[ ().-]{0,2}\d){7,14}(?![\w-])"), _is_phone),
    Kind(
        "phones",
        "-",
        re.compile(r"(?<![\w.+-])(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-. ])[2-9]\d{2}[-.]\d{4}(?![\w-])"),
        _is_phone,
    ),
)  # fmt: skip


def kinds_of(config: PrivacyConfig) -> list[Kind]:
    """The kinds that ``config`` asks for."""
    return [kind for kind in KINDS if getattr(config, kind.name)]


def masker_of(config: PrivacyConfig) -> Callable[[str, Counter[str]], str] | None:
    """What replaces all that ``config`` asks for in a text, and counts it; None if it asks for nothing.

    Known forms go first; Presidio looks at what is left.
    """
    kinds, entities = kinds_of(config), config.presidio.entities
    if not kinds and not entities:
        return None

    def mask_all(text: str, counted: Counter[str]) -> str:
        text = mask(text, kinds, counted)
        if not entities:
            return text
        from lmcore.data.presidio import mask_entities  # an optional extra

        return mask_entities(text, config.presidio, counted)

    return mask_all


def mask(text: str, kinds: Sequence[Kind], counted: Counter[str]) -> str:
    """Replace what ``kinds`` find in ``text`` by placeholders; add how many to ``counted``, by kind."""
    for kind in kinds:
        if kind.hint in text:

            def placeholder(match: re.Match[str], kind: Kind = kind) -> str:
                if not kind.holds(match[0]):
                    return match[0]
                counted[kind.name] += 1
                return kind.placeholder

            text = kind.pattern.sub(placeholder, text)
    return text
