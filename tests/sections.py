"""Settings from one section of a config, as a plan reads them."""

from collections.abc import Mapping
from typing import Any

from launch.stages import settings


def read(kind: type, section: Mapping, path: str) -> Any:
    """`launch.stages.settings` of a section that stands alone; refusals name it `path`."""
    return settings(kind, {path: section}, path)
