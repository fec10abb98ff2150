"""Printing results: plain tables that survive pipes, or one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crossband.shared.files import json_text


def print_json(result: Any) -> None:
    """Print one JSON object; see `json_text`."""
    print(json_text(result))


def format_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay out rows in columns; numbers to the right, None as `-`."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    numeric = [
        bool(rows) and all(isinstance(row[i], (int, float, type(None))) for row in rows)
        for i in range(len(headers))
    ]
    lines = []
    for line in (headers, ["-" * width for width in widths], *cells):
        placed = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        lines.append("  ".join(placed).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
