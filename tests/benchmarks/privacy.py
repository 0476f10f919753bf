"""Print what each privacy mask changes in source code, and how many planted addresses and keys it finds.

python tests/benchmarks/privacy.py FOLDER... [--files 10000] [--show 40] [--planted 2000] [--masks ips,cards]

The first table counts files, hits and distinct hits in the source files below the folders, and lists the
distinct ones with their line: each is to be looked at. The second plants made-up ones of every form that a
setting promises into prose, logs, JSON, code, CSV and HTML, and prints the share that is masked whole.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import random
import string
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from lmcore.data.arrow import text_array, text_buffers
from lmcore.data.privacy import KINDS, Kind, mask
from lmcore.data.suspects import PRIVATE_KEY, marked_lines

SUFFIXES = {
    ".c",
    ".cc",
    ".cfg",
    ".cpp",
    ".css",
    ".go",
    ".h",
    ".hpp",
    ".ini",
    ".java",
    ".js",
    ".json",
    ".lua",
    ".pl",
}
SUFFIXES |= {
    ".pm",
    ".py",
    ".pyi",
    ".rb",
    ".rs",
    ".rst",
    ".sh",
    ".sql",
    ".tcl",
    ".toml",
    ".ts",
    ".xml",
    ".yaml",
    ".yml",
}
MOST_BYTES = 400_000


def source_files(folders: list[str], most: int) -> Iterator[tuple[Path, str]]:
    """Source files below ``folders`` that are UTF-8, in order."""
    found = 0
    for folder in folders:
        for root, names, files in os.walk(folder):
            names.sort()
            for name in sorted(files):
                path = Path(root, name)
                if path.suffix not in SUFFIXES or path.is_symlink() or path.stat().st_size > MOST_BYTES:
                    continue
                try:
                    yield path, path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue
                found += 1
                if found == most:
                    return


def print_hits(folders: list[str], most: int, show: int, names: list[str]) -> None:
    """Print what the masks ``names`` find in source files."""
    files, size, hits = 0, 0, {name: Counter[str]() for name in names}
    where: dict[tuple[str, str], str] = {}
    for path, text in source_files(folders, most):
        files, size = files + 1, size + len(text)
        for name, found, line in _hits(text, [kind for kind in KINDS if kind.name in names]):
            hits[name][found] += 1
            where.setdefault((name, found), f"{path}: {line}")
    print(f"{files} files, {size / 1e6:.0f} MB")
    for name, found in hits.items():
        print(f"{name}: {found.total()} hits, {len(found)} distinct")
        for text, _ in found.most_common(show):
            print(f"    {text!r:.60}  {where[name, text]:.150}")


def _hits(text: str, kinds: list[Kind]) -> Iterator[tuple[str, str, str]]:
    data, offsets = text_buffers(text_array([text]))
    wanted = 0
    for kind in kinds:
        wanted |= kind.mark
    for _, start, end, marks in marked_lines(data, offsets, wanted).tolist():
        line = data[start:end].tobytes()
        for kind in kinds:
            if not kind.mark & marks:
                continue
            searched = data.tobytes() if kind.mark == PRIVATE_KEY else line
            for match in kind.pattern.finditer(searched):
                if kind.holds(match):
                    around = searched[max(0, match.start() - 50) : match.end() + 30]
                    yield kind.name, match[0].decode(), around.decode("utf-8", "replace").strip()


# --- planted ---------------------------------------------------------------------------------------

FRAMES = (
    "Write to {} before noon, please.",
    "{}",
    "Contact: {}.",
    "({})",
    '{{"id": 17, "value": "{}", "ok": true}}',
    "2024-05-06 10:11:12,345 INFO client {} connected",
    "<td>{}</td><td>mill</td>",
    "name,{},42",
    'value = "{}"  # of the miller',
    "Le num\u00e9ro {} a sonn\u00e9.",
    "\u8bf7\u8054\u7cfb{}\uff0c\u8c22\u8c22\u3002",
    "see [{}] and go on",
)


def _digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choices(string.digits, k=count))


def _letters(draw: random.Random, count: int) -> str:
    return "".join(draw.choices(string.ascii_letters + string.digits, k=count - 1)) + draw.choice(
        string.digits
    )


def _ipv4(draw: random.Random) -> str:
    while True:
        address = ipaddress.IPv4Address(draw.getrandbits(32))
        if address.is_global and not address.is_multicast:
            return str(address)


def _ipv6(draw: random.Random) -> str:
    while True:
        groups = [draw.choice((0x2001, 0x2A00, 0x2606, 0x2400)), *(draw.getrandbits(16) for _ in range(7))]
        for place in draw.sample(range(1, 7), draw.randint(0, 4)):
            groups[place] = 0
        address = ipaddress.IPv6Address(":".join(f"{group:x}" for group in groups))
        if address.is_global:
            return draw.choice((str(address), address.exploded, str(address).upper()))


def _phone(draw: random.Random) -> str:
    area, exchange = f"{draw.randint(2, 9)}{_digits(draw, 2)}", f"{draw.randint(2, 9)}{_digits(draw, 2)}"
    last, mark = _digits(draw, 4), draw.choice("-. ")
    return draw.choice(
        (
            f"({area}) {exchange}-{last}",
            f"{area}{mark}{exchange}{mark}{last}",
            f"+1 {area} {exchange} {last}",
            f"+1-{area}-{exchange}-{last}",
            f"+1 ({area}) {exchange}-{last}",
            f"+44 20 {_digits(draw, 4)} {_digits(draw, 4)}",
            f"+49 (0)30 {_digits(draw, 7)}",
            f"+33 6 {_digits(draw, 2)} {_digits(draw, 2)} {_digits(draw, 2)} {_digits(draw, 2)}",
            f"+86{_digits(draw, 11)}",
        )
    )


def _card(draw: random.Random) -> str:
    start, length = draw.choice(
        (("4", 16), ("51", 16), ("2221", 16), ("34", 15), ("6011", 16), ("3528", 16), ("36", 14))
    )
    body = start + _digits(draw, length - 1 - len(start))
    digits = [int(digit) for digit in body + "0"]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    number = body + str(-(sum(doubled) + sum(digits[-1::-2])) % 10)
    if draw.random() < 0.4:
        return number
    ends = {16: (4, 8, 12, 16), 15: (4, 10, 15), 14: (4, 10, 14)}[length]
    starts = (0, *ends[:-1])
    return draw.choice(" -").join(number[i:j] for i, j in zip(starts, ends, strict=True))


def _email(draw: random.Random) -> str:
    local = draw.choice(("jane.doe", "j_d", "mill+news", "a.b-c", f"user{_digits(draw, 3)}", "x"))
    return (
        f"{local}@{draw.choice(('mail.', '', 'a-b.'))}example.{draw.choice(('org', 'co.uk', 'museum', 'io'))}"
    )


def _secret(draw: random.Random) -> str:
    return draw.choice(
        (
            "AKIA" + "".join(draw.choices(string.ascii_uppercase + string.digits, k=15)) + "7",
            "ghp_" + _letters(draw, 36),
            "github_pat_" + _letters(draw, 82),
            "glpat-" + _letters(draw, 20),
            "xoxb-" + _digits(draw, 12) + "-" + _letters(draw, 24),
            "AIza" + _letters(draw, 35),
            "sk-proj-" + _letters(draw, 48),
            "hf_" + _letters(draw, 34),
            "npm_" + _letters(draw, 36),
            "eyJ" + _letters(draw, 20) + ".eyJ" + _letters(draw, 40) + "." + _letters(draw, 43),
        )
    )


FORMS: dict[str, tuple[str, Callable[[random.Random], str]]] = {
    "IPv4": ("ips", _ipv4),
    "IPv6": ("ips", _ipv6),
    "phone": ("phones", _phone),
    "card": ("cards", _card),
    "e-mail": ("emails", _email),
    "key": ("secrets", _secret),
}


def recall(form: str, planted: int, seed: int = 0) -> tuple[int, list[str]]:
    """Of ``planted`` texts with one of ``form`` in them, how many lose it whole; and those that do not."""
    name, make = FORMS[form]
    draw = random.Random(seed)
    kinds = [kind for kind in KINDS if kind.name == name]
    kept, found = [], 0
    for _ in range(planted):
        value, frame = make(draw), draw.choice(FRAMES)
        if mask(frame.format(value), kinds, Counter()) == frame.format(kinds[0].placeholder):
            found += 1
        else:
            kept.append(frame.format(value))
    return found, kept


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--show", type=int, default=40)
    parser.add_argument("--planted", type=int, default=2_000)
    parser.add_argument("--masks", default="ips,cards,phones,secrets,emails")
    options = parser.parse_args()
    if options.folders:
        print_hits(options.folders, options.files, options.show, options.masks.split(","))
    for form in FORMS if options.planted else ():
        found, kept = recall(form, options.planted)
        print(f"{form:<7} {found} of {options.planted} planted are masked, {found / options.planted:.4f}")
        for text in kept[: options.show]:
            print(f"    {text}")


if __name__ == "__main__":
    main()
