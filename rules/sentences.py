"""What the sentences of all rules have in common: how they call a series, and how one goes into another.

They are stored, and told to whoever asks the node.
"""

from __future__ import annotations

from rules.facts import SeriesFacts


def name(facts: SeriesFacts) -> str:
    """How a sentence calls a series: `series 5`; not by its description, into which some sites type names."""
    return "a series without number" if facts.series_number is None else f"series {facts.series_number}"


def clause(sentence: str) -> str:
    """A whole sentence as part of another one: no capital in front, no full stop behind."""
    first = sentence.split(" ", 1)[0]
    is_name = first[1:].lower() != first[1:]  # SOPClassUID, EPI
    return (sentence if is_name else sentence[:1].lower() + sentence[1:]).rstrip(".")


def left_out(facts: SeriesFacts) -> str:
    """The end of a sentence on what a series lacks: it may be in files that could not be read; '' if none."""
    if not facts.unreadable:
        return ""
    files, them = ("1 file", "it") if facts.unreadable == 1 else (f"{facts.unreadable} files", "them")
    return f"; {files} could not be read and may hold what is missing: send {them} again first"
