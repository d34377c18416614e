"""Finds an object of a model file through its links, to other files too (docs/MODEL_FILE.md, Links).

Whoever wrote a model must not choose which files its reader opens. So every link on the way is looked at before it is
followed, and the files that external links name are looked for here, where the HDF5 library would.
"""

import os
from pathlib import Path

import h5py

from .errors import BadInput

MOST_LINKS = 16  # on the way to one object, as in the HDF5 library


def open_file(path: Path) -> h5py.File:
    try:
        if not path.is_file():
            raise OSError("no regular file" if path.exists() else "it does not exist")
        return h5py.File(path, "r")
    except OSError as error:
        raise BadInput(f"{path}: no model file: {error}") from None


class LinkedFiles:
    """The main file of a model and those that links lead to, each opened when something in it is asked for."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._files = {os.path.realpath(self.path): (self.path, open_file(self.path))}

    @property
    def main(self) -> h5py.File:
        return next(iter(self._files.values()))[1]

    @property
    def opened(self) -> list[Path]:
        return [path for path, _ in self._files.values()]

    def close(self) -> None:
        for _, file in self._files.values():
            file.close()

    def find(self, name: str):
        """The object of this absolute name, or None. Raises BadInput for a link that is not followed."""
        self._left = MOST_LINKS
        return self._walk(*next(iter(self._files.values())), name)

    def _walk(self, path: Path, at: h5py.Group, name: str):
        """name: from the group `at` of the file of that path, from its root if it begins with a slash."""
        if name.startswith("/"):
            at = at.file["/"]
        parts = [part for part in name.split("/") if part not in ("", ".")]
        for number, part in enumerate(parts):
            key = part.encode()
            if not isinstance(at, h5py.Group) or not at.id.links.exists(key):
                return None
            kind, rest = at.id.links.get_info(key).type, "/".join(parts[number + 1:])
            if kind == h5py.h5l.TYPE_HARD:
                at = at[part]
                continue
            self._left -= 1
            if self._left < 0:
                raise BadInput(f"{path}: {at.name.rstrip('/')}/{part}: too many links")
            if kind == h5py.h5l.TYPE_SOFT:
                return self._walk(path, at, f"{at.id.links.get_val(key).decode()}/{rest}")
            if kind != h5py.h5l.TYPE_EXTERNAL:
                raise BadInput(f"{path}: {at.name.rstrip('/')}/{part}: a user-defined link, which is not followed")
            file, inside = (value.decode() for value in at.id.links.get_val(key))
            path, at = self._linked(path, f"{at.name.rstrip('/')}/{part}", file)
            return self._walk(path, at, f"/{inside}/{rest}")
        return at

    def _linked(self, path: Path, link: str, name: str) -> tuple[Path, h5py.File]:
        """The file that an external link in the file `path` names."""
        if os.path.isabs(name) or ".." in name.split("/"):
            raise BadInput(f"{path}: {link} leads to {name}, out of the model's folder, which is not followed")
        folders = [*filter(None, os.environ.get("HDF5_EXT_PREFIX", "").split(":")), path.parent, Path(),
                   Path(os.path.realpath(path)).parent]
        found = next((Path(folder) / name for folder in folders if (Path(folder) / name).exists()), None)
        if found is None:
            raise BadInput(f"{path}: {link} leads to {name}, which is missing beside it")
        real = os.path.realpath(found)
        if real not in self._files:
            self._files[real] = found, open_file(found)
        return self._files[real]
