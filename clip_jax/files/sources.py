"""Where a checkpoint is: a folder, a repository of the hub, or one that comes with this package."""

from importlib import resources
from pathlib import Path

from clip_jax.files import hub, weights
from launch.reading import paths

_EMBEDDED = "embedded:"  # before the name of a checkpoint that comes with the package


def embedded(name: str) -> Path:
    """The folder of a checkpoint that comes with this package, for `load`.

    Raises:
      ValueError: an unknown name; the message lists the valid ones.
    """
    folders = _embedded()
    if name not in folders:
        raise ValueError(f"no embedded checkpoint {name!r}; valid names: {', '.join(map(repr, sorted(folders)))}")
    return folders[name]


def _embedded() -> dict[str, Path]:
    root = Path(str(resources.files("clip_jax"))) / "checkpoints"
    return {path.parent.name: path.parent for path in root.glob(f"*/{weights.HUGGINGFACE_CONFIG}")}


def located(source: str | Path) -> Path | str:
    """The folder that `load` would read, or the hub name that it would fetch.

    Raises:
      FileNotFoundError: it is neither; the message lists the checkpoints that come with the package.
      ValueError: it is empty, or there is no checkpoint "embedded:NAME" of this name.
    """
    if isinstance(source, str) and source.startswith(_EMBEDDED):
        return embedded(source.removeprefix(_EMBEDDED))
    path = paths.path(str(source), "clip")
    if path.is_dir():
        return path
    if path.exists():
        raise FileNotFoundError(f"{path} is a file; give the folder of the checkpoint, with config.json in it")
    if isinstance(source, str) and hub.is_name(source):
        return source
    names = ", ".join(repr(f"{_EMBEDDED}{name}") for name in sorted(_embedded())) or "none"
    raise FileNotFoundError(
        f"no folder {str(source)!r}, and it is not a hub name (owner/repository) either. Checkpoints that come with "
        f"the package: {names}"
    )


def folder_of(source: str | Path) -> Path:
    """The folder to read, fetched from the hub where necessary; raises as `located` does."""
    place = located(source)
    return place if isinstance(place, Path) else hub.download(place)
