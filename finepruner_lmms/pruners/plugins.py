"""Methods from other installed packages: the modules that these name."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

GROUP = "finepruner_lmms.methods"
"""The entry point group in which a package names a module that registers methods."""


def plugins() -> list[EntryPoint]:
    """What installed packages name, in a fixed order."""
    return sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))


def load_plugins() -> None:
    """Import the named modules, so that their methods are registered. `RuntimeError` naming one that cannot be."""
    for point in plugins():
        try:
            point.load()
        except Exception as error:
            owner = point.dist.name if point.dist is not None else "an unknown package"
            raise RuntimeError(
                f"plug-in {point.name!r} ({point.value}) of {owner!r} cannot be loaded, so repair or uninstall that "
                f"package: {type(error).__name__}: {error}"
            ) from error
