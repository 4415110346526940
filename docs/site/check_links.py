"""Checks a built site: every link, picture, script and anchor that points into it must be there.

python docs/site/check_links.py build/site
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Targets and anchors of one page."""

    def __init__(self, path: Path):
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken(site: Path) -> list[str]:
    """One line for each target that is not there."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for target in page.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            there = (path.parent / unquote(url.path)).resolve() if url.path else path
            there = there / "index.html" if there.is_dir() else there
            anchor = unquote(url.fragment)
            known = there not in pages or not anchor or anchor in pages[there].anchors
            # 404.html is served from anywhere and links from the root.
            if path.name != "404.html" and not (there.is_file() and known):
                found.append(f"{path.relative_to(site.resolve())}: {target}")
    return found


if __name__ == "__main__":
    faults = broken(Path(sys.argv[1]))
    print("\n".join(faults), file=sys.stderr)
    sys.exit(f"error: {len(faults)} broken links" if faults else 0)
