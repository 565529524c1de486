"""Registries: the values behind the names in configuration files.

A name in a file is one of nonn's own names, a name of an installed package (an entry point of the registry's group),
or ``package.module:name``, which is imported from the current folder or an installed package::

    METHODS: Registry[Partitioner] = Registry("nonn.partitioners", {"random": "nonn.partition.random:partition"})
    METHODS.load("random", "partition.method")              # also "cuts:partition", of cuts.py in the current folder

The current folder is at the end of the import path, so a file there never hides a module of Python or of a package.
Importing runs the code of the module: use only files of people whom you trust.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from nonn.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["Registry", "did_you_mean", "import_path", "installed", "is_path", "source_of"]

T = TypeVar("T")

_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_path(name: str) -> bool:
    """Whether a name has the form ``package.module:name``."""
    return _PATH.fullmatch(name) is not None


def import_path(path: str) -> Any:
    """Imports ``package.module:name`` from the current folder or an installed package.

    Raises:
        ImportError, AttributeError: there is no such module or name.
        Exception: any error of the module.
    """
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()  # the file may be newer than the last import
    return pkgutil.resolve_name(path)


def source_of(path: str) -> Path | None:
    """The file of the module of ``package.module:name``; None for a module without one."""
    import_path(path)
    file = sys.modules[path.partition(":")[0]].__file__
    return Path(file) if file else None


class Registry(MutableMapping[str, T], Generic[T]):
    """Values by name; iteration gives nonn's names and those of installed packages.

    Args:
        group: group of the entry points of installed packages.
        own: nonn's names, each with its value or the ``package.module:name`` from which it is imported when needed.
    """

    def __init__(self, group: str, own: Mapping[str, T | str]) -> None:
        self.group = group
        self._own: dict[str, T | str] = dict(own)

    def load(self, name: str, key: str, error: type[ConfigError] = ConfigError) -> T:
        """The value of a name.

        Args:
            name: a name of the registry, or ``package.module:name``.
            key: the key of the file that has the name, for messages.
            error: class of the error.

        Raises:
            ConfigError: there is no such name or module, or the module fails.
            MissingExtraError: a package that a value of nonn needs is not installed.
        """
        try:
            return self[name]
        except Exception as exc:  # foreign code may raise any error; the user can fix it
            if name in self._own:
                raise
            raise error(f"{key} = {name!r}: {self._why(name, exc)}") from exc

    def __getitem__(self, name: str) -> T:
        value = self._own.get(name)
        if value is None and is_path(name):
            return cast("T", import_path(name))
        if value is None:
            return self.load_installed(name)
        if not isinstance(value, str):
            return value
        try:
            return cast("T", import_path(value))
        except ModuleNotFoundError as exc:
            if exc.name is None or exc.name.startswith("nonn"):
                raise
            raise MissingExtraError(exc.name.partition(".")[0], extra="train") from exc

    def __setitem__(self, name: str, value: T) -> None:
        self._own[name] = value

    def __delitem__(self, name: str) -> None:
        del self._own[name]

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in installed(self.group)

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from (name for name in installed(self.group) if name not in self._own)

    def __len__(self) -> int:
        return len(list(iter(self)))

    @property
    def own(self) -> tuple[str, ...]:
        """Nonn's names."""
        return tuple(self._own)

    def load_installed(self, name: str) -> T:
        """The value of an installed package.

        Raises:
            KeyError: no installed package has the name.
        """
        return cast("T", installed(self.group)[name].load())

    def broken(self, name: str) -> str:
        """The rule that a name breaks; empty if its value can be imported.

        A ``package.module:name`` is imported, so that a mistake in it is found before any work.
        """
        if name not in self._own:
            try:
                self[name]
            except Exception as exc:  # as in ``load``
                return self._why(name, exc)
        return ""

    def _why(self, name: str, exc: Exception) -> str:
        """Why a name that is not nonn's has no value."""
        if is_path(name) or name in self:
            return f"{type(exc).__name__}: {exc}"
        return f"unknown; {did_you_mean(name, self)} (or package.module:name)"


def installed(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of a group in all installed packages, by name."""
    return {point.name: point for point in _entry_points(tuple(sys.path)).select(group=group)}


@functools.cache
def _entry_points(path: tuple[str, ...]) -> Any:
    """All entry points of the packages on an import path: reading the files of each package takes 40 ms."""
    from importlib import metadata  # here, since it takes 30 ms

    return metadata.entry_points()


def did_you_mean(value: str, names: Iterable[str], what: str = "choose one of", prefix: str = "") -> str:
    """The nearest name with a prefix, or all of them."""
    names = list(names)
    near = difflib.get_close_matches(value, names, n=1)
    return f"did you mean '{prefix}{near[0]}'?" if near else f"{what}: {', '.join(names) or '(there is none)'}"
