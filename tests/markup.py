"""A page as its reader gets it: text, ids, addresses; an error where tags do not nest."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "input", "br"}


class Tree(HTMLParser):
    def __init__(self, source: str):
        super().__init__()
        self.open, self.ids, self.addresses, self.texts = [], [], [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def assert_alone(self) -> None:
        """It needs nothing from elsewhere, and its links lead somewhere within it."""
        assert len(self.ids) == len(set(self.ids))
        assert all(address.startswith(("data:", "#")) for address in self.addresses)
        assert {address[1:] for address in self.addresses if address.startswith("#")} <= set(self.ids)
