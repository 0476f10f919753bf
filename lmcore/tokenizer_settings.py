"""Settings in a ``tokenizer.json`` that belong to a batch or a training, not to the tokenizer.

Padding, truncation, BPE dropout and post-processors that add tokens are stored in the same file. They are
switched off: the same text always has the same ids, in exported models too.
"""

from __future__ import annotations

from typing import Any

# They put tokens such as <s> around each text.
_ADDING = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")


def switch_off(content: dict[str, Any], end_of_text: str = "") -> tuple[dict[str, Any], list[str]]:
    """Return ``content`` of a ``tokenizer.json`` without them, and the names of those it had.

    The token ``end_of_text`` is made special: a document that quotes it would else be cut there.
    """
    found = [name for name in ("padding", "truncation") if content.get(name)]
    model = content.get("model") or {}
    plain = content | dict.fromkeys(found)
    if model.get("dropout"):
        found.append(f"BPE dropout {model['dropout']:g}")
        plain["model"] = model | {"dropout": None}
    plain["post_processor"] = _adding_nothing(content.get("post_processor"), found)
    added = content.get("added_tokens") or []
    if any(token.get("content") == end_of_text and not token.get("special") for token in added):
        found.append(f"{end_of_text} in text")
        plain["added_tokens"] = [
            token | {"special": True} if token.get("content") == end_of_text else token for token in added
        ]
    return (plain, found) if found else (content, [])


def _adding_nothing(part: dict[str, Any] | None, found: list[str]) -> dict[str, Any] | None:
    """Return a post-processor without its steps that add tokens, whose names go to ``found``."""
    kind = part.get("type") if part else None
    if kind in _ADDING:
        found.append(f"post-processor {kind}")
        return None
    if not part or kind != "Sequence":
        return part
    steps = [_adding_nothing(step, found) for step in part.get("processors") or ()]
    kept = [step for step in steps if step is not None]
    return part | {"processors": kept} if kept else None
