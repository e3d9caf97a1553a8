"""HTML by construction: all text is escaped and every tag is closed, since no HTML is written by hand."""

from __future__ import annotations

import html
import re

VOID = ("meta", "link", "br", "hr", "path", "line")  # path and line: SVG, written as <path/>
# Characters that HTML forbids in text, and lone surrogates, which UTF-8 can't hold. A sample may contain any of them.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class Markup(str):
    """HTML that is already escaped."""


def text(content: str) -> Markup:
    """Escape text for content and attributes; characters that HTML can't hold become U+FFFD."""
    return Markup(html.escape(_FORBIDDEN.sub("\ufffd", content.replace("\r\n", "\n").replace("\r", "\n"))))


def el(name: str, *children: str | None, attrs: dict[str, str] | None = None) -> Markup:
    """Return an element: `el("td.num", "3")` is `<td class="num">3</td>`. A child that is None is left out."""
    tag, *classes = name.split(".")
    written = {"class": " ".join(classes)} if classes else {}
    written.update(attrs or {})
    head = tag + "".join(f' {key}="{text(value)}"' for key, value in written.items())
    if tag in VOID:
        return Markup(f"<{head}/>")
    return Markup(f"<{head}>{join(*children)}</{tag}>")


def join(*children: str | None) -> Markup:
    """Concatenate elements and texts."""
    return Markup(
        "".join(child if isinstance(child, Markup) else text(child) for child in children if child is not None)
    )


def table(header: list[str], rows: list[list[str]], *, numbers: set[int] = frozenset(), name: str = "table") -> Markup:
    """Return a table that scrolls sideways in a narrow window; `numbers` are the columns aligned to the right."""

    def cells(tag: str, row: list[str]) -> list[Markup]:
        return [el(f"{tag}.num" if index in numbers else tag, cell) for index, cell in enumerate(row)]

    head = el("thead", el("tr", *cells("th", header)))
    body = el("tbody", *(el("tr", *cells("td", row)) for row in rows))
    return el("div.scroll", el(name, head, body))


def facts(pairs: list[tuple[str, str]]) -> Markup:
    """Return a list of names and values."""
    return el("dl.facts", *(el("div", el("dt", name), el("dd", what)) for name, what in pairs))
