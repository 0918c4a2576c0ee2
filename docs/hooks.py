"""Links of the site to files of the repository that lie outside `docs/`.

A page links to `../grids/paper.yaml` as GitHub needs it. In the site such a link leads to the repository, and a picture
is copied along. A link to a file that does not exist is a warning, which `mkdocs build --strict` turns into an error.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?P<picture>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
BLOCK = re.compile(r"^( *```.*?^ *```)", flags=re.MULTILINE | re.DOTALL)
PICTURES = (".png", ".svg")
log = logging.getLogger("mkdocs.hooks.links")


def on_page_markdown(markdown: str, /, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page with its links out of `docs/` rewritten; code blocks stay as they are."""
    root = Path(config.docs_dir).parent

    def rewritten(link: re.Match[str]) -> str:
        return _rewritten(link, page, root, config, files)

    parts = BLOCK.split(markdown)
    return "".join(part if BLOCK.match(part) else LINK.sub(rewritten, part) for part in parts)


def _rewritten(link: re.Match[str], page: Page, root: Path, config: Any, files: Files) -> str:
    """Return one link, changed if its target is outside `docs/` or is a notebook."""
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")
    target = posixpath.normpath(posixpath.join(folder, link["path"]))
    if target.startswith("docs/") and not target.endswith(".ipynb"):
        return link[0]
    if target.startswith("..") or not (root / target).exists():
        log.warning("%s: no file %s; mend the link", page.file.src_uri, target)
        return link[0]
    if link["picture"] and target.endswith(PICTURES):
        return f"![{link['text']}]({_copied(target, page, root, config, files)})"
    kind = "tree" if (root / target).is_dir() else "blob"
    return f"[{link['text']}]({config.repo_url.rstrip('/')}/{kind}/main/{target}{link['anchor'] or ''})"


def _copied(target: str, page: Page, root: Path, config: Any, files: Files) -> str:
    """Add a picture to the site; return its path relative to the page."""
    uri = f"pictures/{target}"
    if files.get_file_from_path(uri) is None:
        files.append(File.generated(config, uri, abs_src_path=str(root / target)))
    return posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
