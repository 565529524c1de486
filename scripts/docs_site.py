"""Pages of the site of ``make docs``: a hook of MkDocs, and an extension of Griffe, which reads the docstrings.

The site mirrors the repository, so that one relative link works on a code host and in the site: ``README.md`` is the
first page, documents keep their paths, other files that a document links to are copied. Links to a
module or package lead to its API page, links to another folder become text. API pages are generated from the package
tree; documents are in the sections and the order of ``docs/README.md``, so that nothing
is listed twice.
"""

from __future__ import annotations

import posixpath
import re
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("nonn", "devices/nonn_device", "simulator/nonn_sim")
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
    for page, module in api_pages().items():
        shown.append(File.generated(config, page, content=f"::: {module}\n"))
    config.nav = _navigation(pages)
    return shown


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Redirects links to Python files and packages to the API; links to other folders, without a page, become text.

    A picture follows the scheme of the site, which a visitor may change, and not that of the system.
    """
    folder, modules = posixpath.dirname(page.file.src_uri), {module: name for name, module in api_pages().items()}

    def replace(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        name = modules.get(_module(target))
        if name:
            return f"{match[1]}({posixpath.relpath(name, folder or '.')})"
        return match[1][1:-1] if (ROOT / target).is_dir() else match[0]

    both = r'<img alt="\2" src="\3#only-light"><img alt="\2" src="\1#only-dark">'
    return _LINK.sub(replace, _PICTURE.sub(both, markdown))


def on_post_build(config: Any) -> None:
    """Raises a PluginError if a page would load something from another host."""
    for path in Path(config.site_dir).rglob("*.html"):
        found = _REMOTE.search(path.read_text())
        if found:
            raise PluginError(f"{path}: loads something from another host: {found[0]}")


@cache
def api_pages() -> dict[str, str]:
    """Module of each API page: all except private, generated and script modules."""
    pages = {}
    for package in PACKAGES:
        root = ROOT / package
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root.parent).with_suffix("").parts
            if any(part.startswith("_") and part != "__init__" for part in parts) or "v1" in parts:
                continue
            name = "/".join(parts).replace("__init__", "index")
            pages[f"api/{name}.md"] = ".".join(part for part in parts if part != "__init__")
    return pages


def _module(target: str) -> str:
    """The module name for a path of the repository."""
    for package in PACKAGES:
        if target == package or target.startswith(f"{package}/"):
            inside = target[len(posixpath.dirname(package)) :].strip("/")
            return inside.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return ""


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
        nav.append({title: [*section, {"All modules": _tree(api_pages())}] if title == "Reference" else section})
    return [*nav, {"Project": [name for name in BACK if name in pages]}]


def _tree(pages: dict[str, str]) -> list[Any]:
    """API pages; each package is a section that starts with its page."""
    sections: dict[str, list[Any]] = {"": []}
    for page, module in sorted(pages.items(), key=lambda item: item[1]):
        parent, _, name = module.rpartition(".")
        if page.endswith("/index.md"):
            sections[module] = [page]
            sections[parent].append({name: sections[module]})
        else:
            sections[parent].append({name: page})
    return sections[""]


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
