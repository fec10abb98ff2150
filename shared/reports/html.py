"""Reports: one self-contained HTML file with tables and pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossband.shared.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; } h1 { margin-bottom: .2rem } h2 { margin-top: 2.2rem }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums;
  display: block; overflow-x: auto } td, th { padding: .25rem .7rem; text-align: right;
  border-bottom: 1px solid #d8dee4; white-space: nowrap } th:first-child, td:first-child
  { text-align: left } th { border-bottom: 2px solid #8c959f } figure { margin: 1rem 0 }
img { max-width: 100% } figcaption, .note { color: #57606a; font-size: .88rem }
"""


class Report:
    """Collects sections and writes them as one HTML file without outside references."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        """Start with a title."""
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>"]
        if subtitle:
            self.note(subtitle)

    def heading(self, text: str) -> None:
        """Start a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def note(self, text: str) -> None:
        """Add a paragraph in small print: a protocol, a source."""
        self._parts.append(f'<p class="note">{html.escape(text)}</p>')

    def table(self, rows: Sequence[dict[str, Any]], caption: str = "") -> None:
        """Add a table; the keys of the first row are its columns."""
        head = "".join(f"<th>{html.escape(str(key))}</th>" for key in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell(v))}</td>" for v in row.values()) + "</tr>"
            for row in rows
        )
        self._parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        if caption:
            self.note(caption)

    def figure(self, figure: Figure, caption: str = "") -> None:
        """Add a matplotlib figure as a picture and close it."""
        import matplotlib.pyplot as plt

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        plt.close(figure)
        self.picture(buffer.getvalue(), "png", caption)

    def picture(self, data: bytes, kind: str, caption: str = "") -> None:
        """Add an encoded picture; `kind` is png, gif or jpeg."""
        encoded = base64.b64encode(data).decode()
        text = html.escape(caption)
        self._parts.append(
            f'<figure><img alt="{text}" src="data:image/{kind};base64,{encoded}">'
            f"<figcaption>{text}</figcaption></figure>"
        )

    def write(self, path: str | Path) -> Path:
        """Write the file atomically."""
        write_text(
            path,
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head><body>"
            + "\n".join(self._parts)
            + "</body></html>\n",
        )
        return Path(path)


def cell(value: Any) -> str:
    """Format one table cell: four significant digits for numbers."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
