"""Printing results: plain tables that survive pipes, or one JSON object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def print_json(result: Any) -> None:
    """Print one JSON object. NaN and infinity become null, which JSON does not have otherwise."""
    print(json.dumps(_finite(result), indent=2, ensure_ascii=False, default=str))


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


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
