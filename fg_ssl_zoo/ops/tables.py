"""Rows of text as a table: of markdown, or in columns for a terminal."""

from collections.abc import Sequence


def markdown_table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: int = 1,
    *,
    spaced: bool = False,
) -> str:
    """A table of markdown.

    Args:
        titles: Titles of the columns.
        rows: Cells of each row.
        words: Columns from the left that hold words; numbers in the others are set to the right.
        spaced: Spaces in the rule, as the cards that are published have it.
    """
    marks = ["---"] * words + ["---:"] * (len(titles) - words)
    rule = f"| {' | '.join(marks)} |" if spaced else f"|{'|'.join(marks)}|"
    head, *rest = (f"| {' | '.join(row)} |" for row in [titles, *rows])
    return "\n".join([head, rule, *rest])


def columns(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """Lines whose cells stand below each other, two spaces apart.

    Args:
        rows: Cells; as many in each row.
        numbers: Whether all columns but the first are set to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    set_rest = str.rjust if numbers else str.ljust
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(set_rest, row[1:], widths[1:])]) for row in rows
    ]
    return [line.rstrip() for line in lines]
