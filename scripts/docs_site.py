"""Pages of the site of ``make docs``: a hook of MkDocs, and an extension of Griffe, which reads the docstrings.

The site mirrors the repository, so that one relative link works on a code host and in the site: ``README.md`` is the
first page, documents keep their paths, other files that a document links to are copied. Links to a module or a folder
become text. The API has the public names of ``nonn``; documents are in the sections and the order of
``docs/README.md``, so that nothing is listed twice.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

import nonn
from nonn import errors

ROOT = Path(__file__).resolve().parent.parent
FRONT = ("README.md", "docs/README.md")
BACK = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
_LINK = re.compile(r"(\[(?:[^\[\]]|\[[^\[\]]*\])*\])\(([^)#\s:]+)(?:#[^)\s]*)?\)")  # [label](path#anchor)
_SOURCE = re.compile(r"""\b(?:src|srcset)="([^"#:\s]+)""")
_PICTURE = re.compile(r'<picture>\s*<source [^>]*srcset="([^"]+)">\s*<img alt="([^"]*)" src="([^"]+)">\s*</picture>')
_RULE = re.compile(r"^\s*=+( +=+)+\s*$")
_REMOTE = re.compile(r"""<(?:script|img|link|iframe)\b[^>]*(?:src|href)=["']?https?://""")


def on_files(files: Files, config: Any) -> Files:
    """Replaces the pages that MkDocs found with those of the repository."""
    shown = Files([file for file in files if file.src_dir != config.docs_dir])  # those of the theme
    sources = [*FRONT, *BACK, *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*")))]
    pages = [name for name in dict.fromkeys(sources) if (ROOT / name).is_file()]
    linked = {target for name in pages if name.endswith(".md") for target in _linked_files(name)}
    for name in [*pages, *sorted(linked - set(pages))]:
        shown.append(File(name, str(ROOT), config.site_dir, use_directory_urls=False))
    for page, content in api_pages().items():
        shown.append(File.generated(config, page, content=content))
    config.nav = _navigation(pages)
    return shown


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links to Python files and folders, which have no page, into text.

    A picture follows the scheme of the site, which a visitor may change, and not that of the system.
    """
    folder = posixpath.dirname(page.file.src_uri)

    def replace(match: re.Match[str]) -> str:
        target = ROOT / posixpath.normpath(posixpath.join(folder, match[2]))
        return match[1][1:-1] if target.is_dir() or (target.suffix == ".py" and target.is_file()) else match[0]

    both = r'<img alt="\2" src="\3#only-light"><img alt="\2" src="\1#only-dark">'
    return _LINK.sub(replace, _PICTURE.sub(both, markdown))


def on_post_build(config: Any) -> None:
    """Raises a PluginError if a page would load something from another host."""
    for path in Path(config.site_dir).rglob("*.html"):
        found = _REMOTE.search(path.read_text())
        if found:
            raise PluginError(f"{path}: loads something from another host: {found[0]}")


def api_pages() -> dict[str, str]:
    """The pages of the API: what docs/api.md calls stable, and no other module."""
    names = [name for name in nonn.__all__ if name not in errors.__all__ and name != "__version__"]
    entries = [f"::: nonn.{name}\n    options: {{ heading_level: 2 }}\n" for name in names]
    return {"api/nonn.md": "\n".join(["# nonn\n", *entries]), "api/errors.md": "::: nonn.errors\n"}


def _linked_files(name: str) -> set[str]:
    """Files of the repository that a document links to and that are not pages."""
    text = (ROOT / name).read_text()
    targets = [match[2] for match in _LINK.finditer(text)] + _SOURCE.findall(text)
    inside = {posixpath.normpath(posixpath.join(posixpath.dirname(name), target)) for target in targets}
    return {x for x in inside if not x.startswith("..") and (ROOT / x).is_file() and not x.endswith((".py", ".md"))}


def _navigation(pages: list[str]) -> list[Any]:
    """The home page, a tab for each section of ``docs/README.md``, and the project's own files."""
    nav: list[Any] = [{"Home": "README.md"}, {"Contents": "docs/README.md"}]
    _, *sections = re.split(r"^## (.+)$", (ROOT / "docs/README.md").read_text(), flags=re.M)
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        linked = [posixpath.normpath(posixpath.join("docs", match[2])) for match in _LINK.finditer(text)]
        section: list[Any] = []
        for name in linked:
            below = posixpath.dirname(name)
            inside = [page for page in pages if below != "docs" and page.startswith(f"{below}/")]
            section.append({posixpath.basename(below).capitalize(): inside} if inside else name)
        nav.append({title: [*section, {"API": list(api_pages())}] if title == "Reference" else section})
    return [*nav, {"Project": [name for name in BACK if name in pages]}]


class PlainTables(griffe.Extension):  # type: ignore[misc]  # Griffe is only installed to build the site
    """Shows the reStructuredText tables and the shapes in brackets of docstrings as written."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Converts the docstring of an object to Markdown."""
        if obj.docstring is not None:
            # Otherwise "in [0, 1] [n]" would be a link to n.
            obj.docstring.value = fence_tables(obj.docstring.value).replace("] [", "] \\[")


def fence_tables(text: str) -> str:
    """Text with each simple table in a fence, and ``::`` at the end of a paragraph as a colon."""
    lines = text.splitlines()
    rules = [number for number, line in enumerate(lines) if _RULE.match(line)]
    if len(rules) % 3 == 0:  # a table has three rules: above and below its head, and at its end
        for number, rule in reversed(list(enumerate(rules))):
            if number % 3 != 1:
                lines.insert(rule + (number % 3 == 2), "```")
    return re.sub(r"::$", ":", "\n".join(lines), flags=re.MULTILINE)
