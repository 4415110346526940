"""Hook of the documentation site: links into the source tree, which the site does not hold, become plain text.

Links to nothing at all stay, and the build fails of them.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s:#]+)\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs for each page."""
    folder = posixpath.dirname(page.file.src_uri)

    def plain(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        in_tree = not target.startswith("..") and (ROOT / target).exists()
        return match[1] if in_tree and files.get_file_from_path(target) is None else match[0]

    return LINK.sub(plain, markdown)
