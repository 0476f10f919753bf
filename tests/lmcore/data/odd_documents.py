"""Documents that come near every published rule, made from a seed; no text of anybody."""

import random

_TEXT = r"""
the be to of and that have with mill water wheel stone grain flour river miller wind sack barn
field a in it is for on as was at by we can't it's you'll don't e-mail file.py
https://a.example/b?c=1 e.g. U.S. 10km 3.5 $5 50% and/or x-ray C++ :-) é naïve straße 東京の水車 вода
мельница Javascript cookies [1] [edit] (so) "quoted" 'tis foo_bar a/b/c 1,000 -5 #tag @name
word... well… rock'n'roll 2024-01-02 ½ → • ☃ don’t
"""
WORDS = _TEXT.split()
MARKS = (".", ".", ".", "!", "?", "", "", ",", ":", "...", "…", '."', ")", ";")
PLAIN = WORDS[:24]


def documents(count: int, seed: int = 0) -> list[str]:
    """``count`` documents."""
    draw = random.Random(seed)
    return [_document(draw) for _ in range(count)]


def _document(draw: random.Random) -> str:
    words = PLAIN if draw.random() < 0.6 else WORDS
    oddity = draw.choice(
        ("none", "none", "repeat", "bullets", "ellipses", "short", "policy", "brackets", "hashes", "long")
    )
    lines = [_line(draw, words, oddity) for _ in range(draw.randint(1, 30))]
    if oddity == "repeat":
        lines += draw.choices(lines, k=draw.randint(1, 20))
        draw.shuffle(lines)
    gaps = draw.choice((("\n",), ("\n", "\n\n"), ("\n\n",), ("\n", "\n \n", "\n\n\n")))
    text = "".join(line + draw.choice(gaps) for line in lines)
    return draw.choice(("", "", " ", "\n", "\n\n")) + text + draw.choice(("", "\n", " "))


def _line(draw: random.Random, words: list[str], oddity: str) -> str:
    size = draw.randint(1, 4) if oddity == "short" else draw.randint(3, 25)
    line = " ".join(draw.choices(words, k=size)) + draw.choice(MARKS)
    if oddity == "bullets" and draw.random() < 0.95:
        line = draw.choice(("- ", "• ", "  - ")) + line
    if oddity == "ellipses" and draw.random() < 0.4:
        line += draw.choice(("...", "…", " ..."))
    if oddity == "policy" and draw.random() < 0.3:
        line += draw.choice(
            (
                " Terms of Use apply.",
                " our privacy policy",
                " this uses cookies",
                " use of cookies.",
                " lorem ipsum",
            )
        )
    if oddity == "brackets" and draw.random() < 0.1:
        line += " { x }"
    if oddity == "hashes" and draw.random() < 0.5:
        line = "# " + line + " ##"
    if oddity == "long" and draw.random() < 0.1:
        line += " " + "x" * draw.choice((999, 1_000, 1_001, 1_200))
    return line
