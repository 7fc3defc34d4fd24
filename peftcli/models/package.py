"""Bases that an installed package ships: `package://IMPORT_NAME/FILE`, found without importing it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from peftcli.errors import ModelError, did_you_mean

SCHEME = "package://"


def locate(address: str) -> Path:
    """The file or folder that `package://IMPORT_NAME/FILE` names.

    Raises:
        ModelError: no such package, no such file in it, or an address that leaves the package's folder.
    """
    name, _, inside = address.removeprefix(SCHEME).partition("/")
    if not name.isidentifier() or not inside:
        raise ModelError(f"{address!r} is not an address; write package://IMPORT_NAME/FILE")
    if ".." in PurePosixPath(inside).parts or inside.startswith("/"):
        raise ModelError(f"{address!r} leaves the folder of the package; name a file inside it")
    root = _folder(name)
    found = root / inside
    if not found.resolve().is_relative_to(root.resolve()):
        raise ModelError(f"{address!r} is a link out of the folder of the package, which is not followed")
    if not found.exists():
        raise ModelError(f"package {name!r} has no {inside!r}; {did_you_mean(inside, _choices(root))}")
    return found


def _folder(name: str) -> Path:
    # Only a top-level name is looked up, so nothing of the package runs.
    spec = find_spec(name)
    if spec is None:
        # Import names hold underscores where the names of distributions mostly hold hyphens.
        raise ModelError(f"package {name!r} is not installed; try `pip install {name.replace('_', '-')}`")
    folders = spec.submodule_search_locations
    if not folders:
        raise ModelError(f"{name!r} is a single module, not a package that could ship files")
    return Path(next(iter(folders)))


def _choices(root: Path) -> list[str]:
    files = (
        path for path in root.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc", ".pyi"}
    )
    return [path.relative_to(root).as_posix() for path in files] or ["(it ships no files)"]
