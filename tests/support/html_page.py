"""A page as a browser sees it, for tests."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "link", "img", "input", "line", "path"}
"""Tags that stay open in this package's pages."""

PICTURE = "data:image/png;base64,"
"""What a picture that is part of the page itself begins with."""


class Page(HTMLParser):
    """What a browser would load, the text and pictures it would show, and the cells of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.pictures: list[str] = []
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.cells: list[str] = []
        self.headings: list[str] = []
        self._inside: list[str] = []
        self.feed(text)
        assert self._inside == [], "a tag is left open"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._inside.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag in ("h2", "h3"):
            self.headings.append("")
        for name, value in attributes:
            if tag == "img" and name == "src" and str(value).startswith(PICTURE):
                self.pictures.append(str(value).removeprefix(PICTURE))
            elif name in ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"):
                self.loads.append(str(value))
            if name == "id":
                self.ids.append(str(value))
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._inside.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._inside.pop() == tag, f"unbalanced {tag}"

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & set(self._inside):
            return
        self.words.append(data)
        if {"td", "th"} & set(self._inside):
            self.cells[-1] += f"{data} "
        if {"h2", "h3"} & set(self._inside):
            self.headings[-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())
