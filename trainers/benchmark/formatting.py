"""Numbers, lists and tables as text, for reports, charts and comparisons."""

from collections.abc import Sequence

UNKNOWN = "–"
SHOWN = 5


def format_number(value: float | None) -> str:
    """Write a number with one digit."""
    return UNKNOWN if value is None else f"{value:.1f}"


def format_percent(fraction: float | None) -> str:
    """Write a fraction in percent, with one digit."""
    return format_number(None if fraction is None else 100 * fraction)


def format_interval(low: float | None, high: float | None) -> str:
    """Write an interval of fractions in percent."""
    return UNKNOWN if low is None else f"{format_percent(low)}–{format_percent(high)}"


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """Write a number with its noun: "1 scene", "5,130 questions"."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def first_few(names: Sequence[str], separator: str = ", ") -> str:
    """Join the first names of a list that may be long."""
    return separator.join([*names[:SHOWN], *(["…"] if len(names) > SHOWN else [])])


def clip(text: str, width: int) -> str:
    """Cut a text to a number of characters."""
    return text if len(text) <= width else text[: width - 1] + "…"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], num_words: int, words_at_end: int = 0) -> str:
    """Write a Markdown table, aligned so that it reads well as plain text, too.

    Args:
        header (`Sequence[str]`): Headings.
        rows (`Sequence[Sequence[str]]`): Cells.
        num_words, words_at_end (`int`): Number of first and of last columns that hold words instead of numbers.
    """
    lines = [[" ".join(cell.replace("|", "\\|").splitlines()) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    is_words = [column < num_words or column >= len(header) - words_at_end for column in range(len(header))]
    cells = [
        [cell.ljust(width) if words else cell.rjust(width) for cell, width, words in zip(*each, strict=True)]
        for each in ((line, widths, is_words) for line in lines)
    ]
    rule = ["-" * width if words else "-" * (width - 1) + ":" for width, words in zip(widths, is_words, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [cells[0], rule, *cells[1:]])
