"""A parsed page: its elements, text and tables, and what holds for each page of the report."""

import itertools
import re
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """A parsed page.

    Attributes:
        elements: (tag, attributes) in order.
        text: what is written, without styles and drawings' paths.
        tables: rows of cells' texts, a list a table.
    """

    def __init__(self, source):
        super().__init__()
        self.source, self.elements, self.text, self.tables = source, [], "", []
        self._open = []
        self.feed(source)
        self.close()
        for table in self.tables:
            for row in table:
                row[:] = [" ".join(cell.split()) for cell in row]
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"{tag} closes another element"
        self.text += " " * (tag not in ("b", "code", "span"))

    def handle_data(self, data):
        if {"style", "script"} & set(self._open):
            return
        self.text += data
        if self._open and {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    def all(self, tag):
        """The attributes of every element of a kind."""
        return [attributes for found, attributes in self.elements if found == tag]

    def check(self):
        """Language, headings, labels, and that nothing is loaded from elsewhere."""
        assert self.source.startswith("<!DOCTYPE html>")
        assert self.all("html") == [{"lang": "en"}]
        assert len(self.all("script")) == 1, "the page's own"
        assert not any(
            name.startswith("on") for _, attributes in self.elements for name in attributes
        )
        levels = [int(tag[1]) for tag, _ in self.elements if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
        assert all(image["alt"].strip() for image in self.all("img"))
        assert all(image["src"].startswith("data:image/jpeg;base64,") for image in self.all("img"))
        figures = [svg for svg in self.all("svg") if "class" not in svg]
        assert all(svg["role"] == "img" and svg["aria-label"].strip() for svg in figures)
        assert len({svg["aria-label"] for svg in figures}) == len(figures)
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(set(ids)) == len(ids)
        targets = [link["href"] for link in self.all("a")]
        assert targets
        assert all(target[0] == "#" and target[1:] in ids for target in targets)
        addresses = re.findall(
            r"""(?:https?:)?//[\w.]+""",
            re.sub(r'xmlns(:xlink)?="[^"]*"|base64,[^"]*', "", self.source),
        )
        assert not addresses, addresses
        assert not re.search(r"url\((?!#)|@import|<(iframe|object|embed|base)\b", self.source)
