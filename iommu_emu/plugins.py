"""Things by name that are one small file each: found by their module, or in a user's own file."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable, Collection
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeGuard, TypeVar

T = TypeVar("T")

__all__ = ["Plugins", "did_you_mean"]


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return how a message about an unknown name ends: with the nearest one, or ""."""
    near = get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


class Plugins(Generic[T]):
    """The modules of a package that each define one thing under the same attribute.

    A module `some_thing` of the package is called "some-thing". Those whose name begins with an
    underscore, and `machinery`, are none.

    Args:
        noun: what each is, for error messages, for example "policy".
        package: dotted name of the package.
        attribute: name under which a module defines its thing, for example "POLICY".
        expected: what that must be, for error messages.
        accepts: whether an object is such a thing.
        machinery: modules of the package that are none.
    """

    def __init__(
        self,
        noun: str,
        package: str,
        attribute: str,
        expected: str,
        accepts: Callable[[object], TypeGuard[T]],
        machinery: Collection[str] = (),
    ) -> None:
        self.noun = noun
        self._package = package
        self._attribute = attribute
        self._expected = expected
        self._accepts = accepts
        self._machinery = machinery

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of what is built in, sorted."""
        package = import_module(self._package)
        modules = [module.name for module in pkgutil.iter_modules(package.__path__)]
        return tuple(
            sorted(
                name.replace("_", "-")
                for name in modules
                if name not in self._machinery and not name.startswith("_")
            )
        )

    def table(self) -> list[T]:
        """Return everything that is built in, by name."""
        return [self.load(name) for name in self.names]

    def load(self, name: str) -> T:
        """Return one of them.

        Args:
            name: one of `names`, or the path of a Python file, which is run.

        Raises:
            ValueError: if there is none of that name, or the file cannot be run or defines none.
            OSError: if the file cannot be read.
        """
        if name.endswith(".py"):
            return self._of(_run(Path(name)), name)
        if name not in self.names:
            raise ValueError(
                f"{self.noun} must be one of {', '.join(self.names)}, "
                f"or a Python file, not {name!r}{did_you_mean(name, self.names)}"
            )
        return self._of(import_module(f"{self._package}.{name.replace('-', '_')}"), name)

    def _of(self, module: ModuleType, name: str) -> T:
        found: object = getattr(module, self._attribute, None)
        if not self._accepts(found):
            raise ValueError(f"{name}: defines no {self._attribute} that is {self._expected}")
        return found


def _run(path: Path) -> ModuleType:
    """Return a user's file as a module of its own.

    Raises:
        ValueError: if it raises something.
        OSError: if it cannot be read.
    """
    spec = util.spec_from_file_location(f"iommu_emu_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: not a Python file")
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    return module
