"""Building a dataset from what packages carry: all of it or nothing, and the same files from the same arguments."""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

from commit_tuning.data.files import user_path
from commit_tuning.errors import UserError, one_line
from commit_tuning.processes import end_with_parent
from commit_tuning.storage import explained, sync, write_text

MANIFEST = "MANIFEST.json"
_CHUNK = 100
_MARKER = "commit-tuning is building a dataset here"
_MADE = "dataset"
_RANDOM = "[a-z0-9_]" * 8  # what `mkdtemp` puts into a name
Task = TypeVar("Task")
Result = TypeVar("Result")


def package_folder(package: str, folder: str, extra: str, use: str) -> Path:
    """Return the folder of an installed package without importing it: only its files are needed.

    Args:
        package: Its name.
        folder: Inside it; "" is the package's own.
        extra: That of this project which installs it.
        use: What its files do, such as "whose fonts draw Nano-IconQA".

    Raises:
        UserError: The package is not installed, or has no such folder.
    """
    found = importlib.util.find_spec(package)
    for place in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(place, folder)).is_dir():
            return path
    raise UserError(f"{package}, {use}, is not installed as a whole: pip install 'commit-tuning[{extra}]'")


def build(root: str | Path, title: str, recipe: dict[str, Any], write: Callable[[Path], dict[str, Any]]) -> Path:
    """Write a dataset, unless the same one lies there complete.

    Everything is written to a temporary folder beside ``root`` and moved at the end, so a folder that exists is
    complete. ``MANIFEST.json`` holds the recipe, what ``write`` returned and checksums. One process builds at a time;
    the others wait for it. What a killed one left is removed.

    Args:
        root: Folder to create.
        title: The dataset's name, for errors.
        recipe: What decides its content; two datasets are the same if their recipes are.
        write: Fills a folder, and returns what else the manifest should tell.

    Returns:
        ``root`` as a path.

    Raises:
        UserError: ``root`` holds something else, is damaged, or cannot be written.
    """
    from filelock import FileLock

    root = Path(root)
    place = root.absolute()
    with explained(root):
        if not _is_complete(root, title, recipe):
            place.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(place.with_name(f".{place.name}.lock")):
                if not _is_complete(root, title, recipe):  # another process has built it meanwhile
                    _remove_unfinished(place)
                    _build(place, recipe, write)
    return root


def _build(root: Path, recipe: dict[str, Any], write: Callable[[Path], dict[str, Any]]) -> None:
    unfinished = Path(mkdtemp(prefix=f".{root.name}-", suffix=".partial", dir=root.parent))
    try:
        (unfinished / _MARKER).touch()
        made = unfinished / _MADE
        made.mkdir()
        told = write(made)
        _write_manifest(made, {"status": "complete", **recipe, **told, "sha256": dataset_checksum(made)})
        if root.is_dir():
            root.rmdir()  # empty
        made.rename(root)
        sync(root.parent)
    finally:
        _remove(unfinished)


def _remove_unfinished(root: Path) -> None:
    """Remove what killed builders of a dataset left. Nobody else may be at work there."""
    for path in root.parent.glob(f".{glob.escape(root.name)}-{_RANDOM}.partial"):
        if (path / _MARKER).is_file() and not path.is_symlink():
            _remove(path)


def _remove(unfinished: Path) -> None:
    """Remove a builder's folder, its marker last."""
    shutil.rmtree(unfinished / _MADE, ignore_errors=True)
    shutil.rmtree(unfinished, ignore_errors=True)


def recipe_of(
    title: str, form: int, seed: int, counts: dict[str, int], workers: int, *, unit: str = "question"
) -> dict[str, Any]:
    """Return what determines a built dataset: its format, seed and counts by split.

    Raises:
        UserError: A count, or the number of workers, is not positive.
    """
    if min(*counts.values(), workers) < 1:
        raise UserError(f"{title} needs at least 1 {unit} per split and 1 worker: {', '.join(counts)}, workers >= 1")
    return {"format": form, "seed": seed, "counts": counts}


def _is_complete(root: Path, title: str, recipe: dict[str, Any]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / MANIFEST).is_file():
        raise UserError(f"{root} exists and is no {title} dataset: choose another folder or empty it")
    manifest = check_built(root)
    found = {key: manifest.get(key) for key in recipe}
    if found != recipe or manifest.get("status") != "complete":
        raise UserError(f"{root} holds another {title} ({one_line(found)}, wanted {recipe}): choose another folder")
    return True


def check_built(root: Path) -> dict[str, Any]:
    """Make sure that a dataset is as it was built, and return its manifest.

    Names, sizes and times of the files tell in a moment that nothing has changed. Where they differ, as after a copy,
    the content decides.

    Args:
        root: Its folder, which holds a manifest.

    Raises:
        UserError: The manifest is damaged, or the content has changed.
    """
    manifest = _read_manifest(root)
    if manifest.get("listing") != _listing(root):
        if not _holds(root, manifest.get("sha256")):
            raise _damaged(root, "files are missing, added or changed")
        with suppress(UserError):  # a folder that cannot be written is compared again each time
            _write_manifest(root, manifest)
    return manifest


def _write_manifest(root: Path, manifest: dict[str, Any]) -> None:
    whole = manifest | {"listing": _listing(root)}
    write_text(root / MANIFEST, _as_json(whole | {"manifest_sha256": _own_checksum(whole)}))


def _read_manifest(root: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((root / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        raise _damaged(root, f"{MANIFEST} cannot be read") from None
    if not isinstance(manifest, dict):
        raise _damaged(root, f"{MANIFEST} has changed")
    checksum = manifest.pop("manifest_sha256", None)
    by_older_version = checksum is None and "listing" not in manifest
    if not by_older_version and checksum != _own_checksum(manifest):
        raise _damaged(root, f"{MANIFEST} has changed")
    return manifest


def _own_checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _listing(root: Path) -> str:
    """Return the SHA-256 of the names, sizes and times of a dataset's files."""
    said = ((name, path.stat()) for name, path in _files(root))
    lines = (f"{name} {stat.st_size} {stat.st_mtime_ns}\n" for name, stat in said)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _holds(root: Path, checksum: object) -> bool:
    try:
        return dataset_checksum(root) == checksum
    except Exception:  # what decoders raise at a damaged picture
        return False


def _damaged(root: Path, what: str) -> UserError:
    return UserError(f"the dataset in {root} is damaged ({what}); remove that folder, and it is built again")


def in_processes(task: Callable[[Task], Result], tasks: list[Task], workers: int) -> Iterable[Result]:
    """Return results in the order of the tasks; with more than one worker, ``task`` must be importable."""
    if workers == 1 or len(tasks) == 1:
        return map(task, tasks)
    context = get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=end_with_parent) as pool:
        return list(pool.map(task, tasks))


def in_splits(
    write: Callable[[str, int, int], Result], counts: dict[str, int], workers: int
) -> dict[str, list[Result]]:
    """Make every entry of every split.

    Args:
        write: Makes one entry from the split, its number in the split from 0, and its number in the dataset from 1;
            importable if there is more than one worker.
        counts: Split -> number of its entries.
        workers: Number of processes.

    Returns:
        Split -> its entries in order.
    """
    first, chunks = 1, []
    for split, count in counts.items():
        chunks += [(split, first, range(at, min(at + _CHUNK, count))) for at in range(0, count, _CHUNK)]
        first += count
    made: dict[str, list[Result]] = {split: [] for split in counts}
    for (split, _, _), entries in zip(chunks, in_processes(partial(_chunk, write), chunks, workers), strict=True):
        made[split] += entries
    return made


def _chunk(write: Callable[[str, int, int], Result], chunk: tuple[str, int, range]) -> list[Result]:
    split, first, numbers = chunk
    return [write(split, number, first + number) for number in numbers]


def write_json(path: Path, value: object) -> None:
    """Write JSON as people read it."""
    path.write_text(_as_json(value), encoding="utf-8")


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def dataset_checksum(root: str | Path) -> str:
    """Hash a dataset independently of the image encoder: sorted paths, JSON text and decoded pixels.

    Args:
        root: Folder of a dataset; the manifest itself is left out.

    Returns:
        64 hexadecimal digits.

    Raises:
        UserError: There is no dataset.
    """
    from PIL import Image

    files = _files(Path(root))
    if not files:
        raise UserError(f"{root} holds no dataset: build one first")
    digest = hashlib.sha256()
    for name, path in files:
        if path.suffix == ".png":
            with Image.open(path) as image:
                content = f"{image.mode} {image.size}".encode() + image.tobytes()
        else:
            content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _files(root: Path) -> list[tuple[str, Path]]:
    """Return a dataset's files by name, without its manifest and hidden files, which systems add."""
    return [(name, root / name) for name in sorted(_names(root)) if name != MANIFEST]


def _names(folder: str | Path, prefix: str = "") -> Iterator[str]:
    """Yield the files below a folder; in one that cannot be read there are none."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _names(entry.path, f"{name}/")
            elif entry.is_file():
                yield name


def cache_dir() -> Path:
    """Return the folder for built files: $COMMIT_TUNING_CACHE, or ``commit-tuning`` in the platform's cache folder."""
    import platformdirs

    chosen = os.environ.get("COMMIT_TUNING_CACHE")
    return user_path(chosen) if chosen else platformdirs.user_cache_path("commit-tuning", appauthor=False)
