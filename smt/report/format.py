"""Numbers and sources as text, the same in every table, figure and page."""

from collections.abc import Iterable, Mapping

from smt.config.published import Source


def signed(value: float | None, decimals: int) -> str:
    """Return a difference with its sign, or an empty text; one that rounds to zero has no sign."""
    if value is None:
        return ""
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text


def plus_minus(mean: float, std: float | None, decimals: int) -> str:
    """Return a mean with its standard deviation, as in `82.20 ± 0.15`; alone where that is None."""
    text = f"{mean:.{decimals}f}"
    return text if std is None else f"{text} ± {std:.{decimals}f}"


def exact(value: float | None) -> str:
    """Return a number with every digit, or nothing."""
    return "" if value is None else repr(float(value))


def css_class(text: str) -> str:
    """Return a state or verdict as a class of the style sheet."""
    return text.lower().replace(" ", "-")


def joined(values: Iterable[object]) -> str:
    """Return values as one field of a CSV file, in the order of the seeds."""
    return "; ".join(str(value) for value in values)


def source_mark(index: int) -> str:
    """Return the letter of the source at `index`: a, b, ... z, aa."""
    mark = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        mark = chr(ord("a") + letter) + mark
    return mark


def source_notes(names: Iterable[str], sources: Mapping[str, Source]) -> list[str]:
    """Return the note of each source, in the order of their marks."""
    return [
        f"[{source_mark(index)}] {sources[name].title}: {sources[name].where}."
        for index, name in enumerate(names)
    ]
