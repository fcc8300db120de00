"""Tables of text, as markdown or as aligned columns for a terminal."""

from collections.abc import Sequence


def markdown_table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: int = 1,
    *,
    spaced: bool = False,
) -> str:
    """A markdown table.

    Args:
        titles: Titles of the columns.
        rows: Cells of each row.
        words: Number of text columns from the left; the others are right-aligned numbers.
        spaced: Whether the separator row has spaces, as in published cards.
    """
    marks = ["---"] * words + ["---:"] * (len(titles) - words)
    rule = f"| {' | '.join(marks)} |" if spaced else f"|{'|'.join(marks)}|"
    head, *rest = (f"| {' | '.join(row)} |" for row in [titles, *rows])
    return "\n".join([head, rule, *rest])


def columns(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """Lines with aligned columns, two spaces apart.

    Args:
        rows: Cells, the same number in each row.
        numbers: Whether all columns except the first are right-aligned.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    set_rest = str.rjust if numbers else str.ljust
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(set_rest, row[1:], widths[1:])]) for row in rows
    ]
    return [line.rstrip() for line in lines]
