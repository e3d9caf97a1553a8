"""The frame of a page, and writing it: atomically, and never over a file that ft-host didn't write."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

from ft_host.errors import FtHostError, UsageError
from ft_host.report.assets import SCRIPT, STYLE
from ft_host.report.markup import Markup, el

GENERATOR = "ft-host report"


def page(title: str, *content: str) -> str:
    """Return a complete document. Its policy forbids every request and every script but ours, whatever a sample
    contains.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    head = el(
        "head",
        el("meta", attrs={"charset": "utf-8"}),
        el("meta", attrs={"name": "generator", "content": GENERATOR}),
        el("meta", attrs={"http-equiv": "Content-Security-Policy", "content": policy}),
        el("meta", attrs={"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        el("meta", attrs={"name": "referrer", "content": "no-referrer"}),
        el("link", attrs={"rel": "icon", "href": "data:,"}),
        el("title", title),
        el("style", Markup(STYLE)),
    )
    body = el("body", el("main", *content), el("script", Markup(SCRIPT)))
    return f"<!doctype html>\n{el('html', head, body, attrs={'lang': 'en'})}\n"


def write_page(path: Path, html: str) -> Path:
    """Write to a temporary file, then rename. Raises `UsageError` where a folder or another kind of file is
    in the way.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; expected a file name")
    if path.exists() and GENERATOR.encode() not in path.read_bytes()[:400]:
        raise UsageError(f"{path}: exists and was not written by ft-host; choose another --output")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(html, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise FtHostError(f"{path}: the report could not be written: {error.strerror or error}") from error
    return path
