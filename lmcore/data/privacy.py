"""Mask what names a person or opens something: addresses, numbers, keys; each by a placeholder of its kind.

A match must be of its kind beyond its form. Cards have an issuer's first digits, length, grouping and check
digit (ISO/IEC 7812); IP addresses are public, and no version, section or object identifier; telephone numbers
have a country code (ITU-T E.164) or are those of North America. This finds well-known forms; names and places
need a model (``lmcore.data.presidio``).

Patterns look at one line of UTF-8 at a time, so that what is masked depends on nothing outside of the line.
"""

from __future__ import annotations

import bisect
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyarrow as pa

from lmcore.config import PrivacyConfig
from lmcore.data.arrow import bytes_array, text_array, text_buffers
from lmcore.data.suspects import CARD, EMAIL, IPV4, IPV6, PHONE, PRIVATE_KEY, SECRET, marked_lines


class Kind(NamedTuple):
    """A kind of what is masked.

    Attributes:
        name: Its setting in ``data.privacy``.
        mark: What ``lmcore.data.suspects`` marks lines with that may hold one.
        pattern: Its form, over UTF-8.
        holds: Whether a match of the form is really one.
    """

    name: str
    mark: int
    pattern: re.Pattern[bytes]
    holds: Callable[[re.Match[bytes]], bool] = lambda match: True

    @property
    def placeholder(self) -> str:
        """What takes its place."""
        return f"<{self.name.upper().rstrip('S')}>"


_Found = tuple[int, int, Kind]  # start and end in the text


def _before(match: re.Match[bytes], size: int = 64) -> bytes:
    """At most ``size`` bytes before ``match``; a line may be long."""
    return match.string[max(0, match.start() - size) : match.start()]


# --- IP addresses ----------------------------------------------------------------------------------

# Before a version, a section, an object identifier: four numbers with dots there are no address.
_NUMBERED = re.compile(
    rb"(?:\b(?:v|ver|version|versions|release|rev|revision|build|section|sections|sec|chapter|clause|appendix|table"
    rb"|figure|fig|rule|rfc|paragraph|oid|identifier|objectidentifier|asn1|upgrade|upgraded|update|updated|package"
    rb"|python|firmware|driver|jdk|jre|java|chrome|since|requires?)\b|version\w*|_ver|[a-z]v|[=~<>!^]=|[<~^]|[\s\"'(]>|[-_]|\xc2\xa7)"
    rb"[\s'\"`(\[:=]*$",
    re.IGNORECASE,
)
_ADDRESSED = re.compile(
    rb"(?:\bips?\b|ipv4|ip[_-]?addr|addr|\bhosts?\b|host(?:name)?|server|\bdns\b|\bping\b|client|\bpeer\b|remote"
    rb"|gateway|subnet|\bnetwork\b|netmask|router|listen|\bbind\b|\bconnect(?:ed|ing|ion)?\s+(?:to|from)\b|proxy|\binet\b|\bsrc\b|\bdst\b|\bssh\b|\bnat\b"
    rb"|login|visitor|request|forwarded|://|@|::ffff:|64:ff9b::)[^\n]{0,40}$",
    re.IGNORECASE,
)
_ENDPOINT = re.compile(rb":\d{2,5}\b|/(?:[0-9]|[12]\d|3[0-2])(?![\w.])| - - \[|%")
_URL = re.compile(rb"(?:://|@|::ffff:)\[?$", re.IGNORECASE)
_OBJECT_ARCS = {(1, 2), (1, 3), (2, 5), (2, 16), (2, 23)}  # of ISO and joint-iso-itu-t
_SMALL, _LARGE = 32, 100


def _is_public_ipv4(match: re.Match[bytes]) -> bool:
    try:
        address = ipaddress.IPv4Address(match[0].decode())
    except ValueError:
        return False
    if not address.is_global or address.is_multicast:
        return False
    before, after = _before(match), match.string[match.end() : match.end() + 8]
    if _URL.search(before):
        return True
    if _NUMBERED.search(before):
        return False
    return bool(_ENDPOINT.match(after) or _ADDRESSED.search(before)) or _looks_like_address(address.packed)


def _looks_like_address(octets: bytes) -> bool:
    """Whether four numbers that nothing is said of are an address: versions and sections count from 1 up."""
    if tuple(octets[:2]) in _OBJECT_ARCS:
        return False
    return max(octets) >= _LARGE or sum(octet >= _SMALL for octet in octets) >= (2 if octets[0] >= 10 else 3)


def _is_public_ipv6(match: re.Match[bytes]) -> bool:
    groups = [group for group in match[0].split(b":") if group]
    # Slices of lists have two numbers, or three.
    if len(groups) < 3 or all(group.isdigit() and len(group) < 3 for group in groups[1:]):
        return False
    try:
        return ipaddress.IPv6Address(match[0].decode()).is_global
    except ValueError:
        return False


# --- cards and telephones --------------------------------------------------------------------------

_ISSUERS = re.compile(
    rb"4\d{15}|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Visa, Mastercard
    rb"|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}"  # American Express, Diners Club
    rb"|(?:6011\d\d|65\d{4}|64[4-9]\d{3}|62\d{4}|35(?:2[89]|[3-8]\d)\d\d)\d{10}"  # Discover, UnionPay, JCB
)
_GROUPS = {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4)}


# A long number in arithmetic, in a call or in a list of numbers is no card, unless the line speaks of one.
_OPERAND = re.compile(rb"(?:[=+*/%^&-]|, |\w[(\[])\s*$")
_OF_CARDS = re.compile(rb"card|visa|amex|credit|debit|payment|\bpan\b|\bcc\b", re.IGNORECASE)


def _is_card(match: re.Match[bytes]) -> bool:
    """Whether a number has an issuer's first digits, length, grouping and check digit."""
    text = match[0]
    before = _before(match)
    if text.isdigit() and _OPERAND.search(before) and not _OF_CARDS.search(before):
        return False
    plain = re.sub(rb"[ -]", b"", text)
    if not _ISSUERS.fullmatch(plain):
        return False
    if len(plain) < len(text):
        groups = tuple(map(len, re.split(rb"[ -]", text)))
        if groups not in _GROUPS or len(set(re.findall(rb"[ -]", text))) > 1:
            return False
    digits = [digit - 48 for digit in plain]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


# Country codes that are assigned.
_COUNTRY = re.compile(
    rb"1|7|20|21[12368]|2[2-46]\d|25[0-8]|27|29[01789]|3[0-469]|35\d|37[0-8]|38[0-35-79]|4[013-9]|42[013]|5[1-8]"
    rb"|50\d|59\d|6[0-6]|67[02-9]|68[0-35-9]|69[0-2]|8[1246]|80[08]|85[02356]|8[78]0|88[1-368]|878|9[0-58]"
    rb"|96[0-8]|97[0-79]|99[2-68]"
)
_DATE = re.compile(rb"\+(?:1[89]|20)\d\d-\d\d-\d\d")


def _is_international(match: re.Match[bytes]) -> bool:
    """Whether a number with a plus has as many digits as can be dialled, and is no date or decimal."""
    text = match[0]
    digits = sum(48 <= character < 58 for character in text)
    if not 8 <= digits <= 15 or _DATE.match(text) or not _COUNTRY.match(re.sub(rb"[^\d]", b"", text)):
        return False
    return re.fullmatch(rb"\+\d+\.\d+", text) is None  # a decimal


_USER_OF_URL = re.compile(rb"://[^\s/@]*$")
# Suffixes of files and attributes of arrays, in names and products such as a@2x.png and a@b.real; no domains.
_NO_DOMAIN = frozenset(
    b"txt asc json jsonl html htm jpg jpeg png gif svg css js ts yml yaml toml xml csv ini cfg conf exe dll"
    b" bat log tar tgz gz jar whl egg lock class java cpp hpp ipynb parquet shape dot flat real imag size"
    b" ndim dtype conj sum mean copy numpy item values".split()
)


def _is_email(match: re.Match[bytes]) -> bool:
    """Whether it is not the user of a URL, the name of a file or a product of arrays."""
    if match[0].rpartition(b".")[2].lower() in _NO_DOMAIN:
        return False
    return _USER_OF_URL.search(_before(match, 200)) is None


_SECRETS = (
    rb"(?:AKIA|ASIA)[0-9A-Z]{16}"  # AWS
    rb"|gh[pousr]_[0-9A-Za-z]{36,}|github_pat_[0-9A-Za-z_]{60,}"
    rb"|glpat-[0-9A-Za-z_-]{20,}"
    rb"|xox[abposr]-[0-9A-Za-z-]{24,}"  # Slack
    rb"|AIza[0-9A-Za-z_-]{35}"  # Google
    rb"|sk-(?:ant-|proj-)?[0-9A-Za-z_-]{32,}"
    rb"|hf_[0-9A-Za-z]{34,}"
    rb"|npm_[0-9A-Za-z]{36}"
    rb"|eyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{10,}"  # JSON web tokens
)


def _is_random(match: re.Match[bytes]) -> bool:
    """Whether a key is no placeholder, such as sk-xxxx: it has several different characters, and a digit."""
    body = match[0]
    return len(set(body)) >= 6 and any(48 <= character < 58 for character in body)


_KEY = re.compile(rb"(?<![0-9A-Za-z_-])(?:" + _SECRETS + rb")(?![0-9A-Za-z])")
_PRIVATE_KEY = re.compile(
    rb"-----BEGIN ([A-Z ]{0,32})PRIVATE KEY-----[\sA-Za-z0-9+/=:,.\\-]{64,16000}?-----END \1PRIVATE KEY-----"
)

# In this order: of matches that overlap the earlier kind stays.
KINDS = (
    Kind("secrets", PRIVATE_KEY, _PRIVATE_KEY),
    Kind("secrets", SECRET, _KEY, _is_random),
    Kind(
        "emails",
        EMAIL,
        re.compile(
            rb"(?:(?<=\\[ntr])|(?<![0-9A-Za-z._%+\\-]))[0-9A-Za-z_%+][0-9A-Za-z._%+-]{0,63}@(?:[0-9A-Za-z](?:[0-9A-Za-z-]{0,62})\.){1,8}"
            rb"[A-Za-z]{2,24}(?![0-9A-Za-z_(@]|-\w|:[\w.~-]*/)"
        ),
        _is_email,
    ),
    Kind("cards", CARD, re.compile(rb"(?<![\w.+-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d|\s*[*+/^%])"), _is_card),
    Kind(
        "ips",
        IPV4,
        re.compile(rb"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\w)"),
        _is_public_ipv4,
    ),
    Kind(
        "ips",
        IPV6,
        re.compile(rb"(?<![\w:.])[23][0-9A-Fa-f]{3}(?::{1,2}[0-9A-Fa-f]{1,4}){1,7}(?:::)?(?![\w:]|\.\w)"),
        _is_public_ipv6,
    ),
    Kind(
        "phones",
        PHONE,
        re.compile(rb"(?<![\w+.])\+[1-9](?:[ ().-]{0,2}\d){7,14}(?![\w-]|\.\d)"),
        _is_international,
    ),
    Kind(
        "phones",
        PHONE,
        re.compile(
            rb"(?<![\w.+-])(?<!\d )(?:(?:1[-. ]?)?\([2-9]\d{2}\) ?[2-9]\d{2}[-. ]"
            rb"|(?:1([-. ])[2-9]\d{2}\1|[2-9]\d{2}([-. ]))[2-9]\d{2}(?:\1|\2))\d{4}(?![\w-]|\.\d| \d)"
        ),
    ),
)  # fmt: skip


def kinds_of(config: PrivacyConfig) -> list[Kind]:
    """The kinds that ``config`` asks for."""
    return [kind for kind in KINDS if getattr(config, kind.name)]


def mask_texts(texts: pa.Array, config: PrivacyConfig, counted: Counter[str]) -> pa.Array:
    """Replace what ``config`` asks for in ``texts`` (``pa.large_string``); count it in ``counted``, by kind.

    Known forms go first; Presidio looks at what is left.
    """
    masked = _mask_all(texts, kinds_of(config), counted)
    if not config.presidio.entities:
        return masked
    from lmcore.data.presidio import mask_entities  # an optional extra

    return text_array([mask_entities(text, config.presidio, counted) for text in masked.to_pylist()])


def masks(config: PrivacyConfig) -> bool:
    """Whether ``config`` asks for anything."""
    return bool(kinds_of(config) or config.presidio.entities)


def mask(text: str, kinds: Sequence[Kind], counted: Counter[str]) -> str:
    """Replace what ``kinds`` find in ``text`` by placeholders; add how many to ``counted``, by kind."""
    return _mask_all(text_array([text]), kinds, counted)[0].as_py()


def _mask_all(texts: pa.Array, kinds: Sequence[Kind], counted: Counter[str]) -> pa.Array:
    if not kinds:
        return texts
    data, offsets = text_buffers(texts)
    wanted = 0
    for kind in kinds:
        wanted |= kind.mark
    by_text: dict[int, list[_Found]] = {}
    whole: set[int] = set()
    for number, start, end, marks in marked_lines(data, offsets, wanted).tolist():
        line = data[start:end].tobytes()
        place = start - int(offsets[number])
        of_line = [kind for kind in kinds if kind.mark & marks & ~PRIVATE_KEY]
        by_text.setdefault(number, []).extend(_find(line, of_line, place))
        if marks & PRIVATE_KEY:
            whole.add(number)
    for number in whole:  # a private key has many lines
        text = data[offsets[number] : offsets[number + 1]].tobytes()
        by_text.setdefault(number, []).extend(
            _find(text, [kind for kind in kinds if kind.mark == PRIVATE_KEY], 0)
        )
    changed = {number: chosen for number, found in by_text.items() if (chosen := _choose(found))}
    if not changed:
        return texts
    raw: list[bytes | memoryview] = []
    view = memoryview(data)  # pyright: ignore[reportArgumentType] - numpy's arrays are buffers
    for number in range(len(texts)):
        start, end = int(offsets[number]), int(offsets[number + 1])
        pieces = changed.get(number)
        raw.append(_replace(view[start:end], pieces, counted) if pieces else view[start:end])
    return bytes_array(raw)


def _find(text: bytes, kinds: Sequence[Kind], place: int) -> list[_Found]:
    """Matches of ``kinds`` in ``text``, which is at ``place`` of its document."""
    return [
        (place + match.start(), place + match.end(), kind)
        for kind in kinds
        for match in kind.pattern.finditer(text)
        if kind.holds(match)
    ]


def _choose(found: list[_Found]) -> list[_Found]:
    """Those of ``found`` that stay, in order: of two that overlap the earlier kind, then the first."""
    chosen: list[_Found] = []
    rank = {id(kind): number for number, kind in enumerate(KINDS)}
    for one in sorted(found, key=lambda one: (rank[id(one[2])], one[0])):
        place = bisect.bisect_left(chosen, one[0], key=lambda other: other[0])
        if place and chosen[place - 1][1] > one[0]:
            continue
        if place == len(chosen) or chosen[place][0] >= one[1]:
            chosen.insert(place, one)
    return chosen


def _replace(text: memoryview, found: list[_Found], counted: Counter[str]) -> bytes:
    parts: list[bytes | memoryview] = []
    behind = 0
    for start, end, kind in found:
        parts += [text[behind:start], kind.placeholder.encode()]
        counted[kind.name] += 1
        behind = end
    return b"".join([*parts, text[behind:]])
