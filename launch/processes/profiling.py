"""A profile of some steps of a training: what `launch.train --profile=A:B` asks for."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from absl import logging

from launch.reading import InputError


@dataclass(frozen=True)
class Profile:
    """Steps to trace in every training of a run, counted from 1 as in the logs.

    Attributes:
      first, last: the steps; both are traced.
      folder: of the traces, one folder per training in it, and one per process where there are several.
    """

    first: int
    last: int
    folder: Path

    @classmethod
    def parse(cls, text: str, folder: Path) -> "Profile":
        """From "A:B".

        Raises:
          InputError: the text is something else, or says an empty range.
        """
        match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", text, re.ASCII)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            remedy = "give the first and the last one, counted from 1, such as 100:110"
            raise InputError(f"--profile={text} is no range of steps", remedy=remedy)
        return cls(int(match[1]), int(match[2]), folder)

    def traces(self) -> set[Path]:
        """The files that are there."""
        return set(self.folder.rglob("*.xplane.pb"))


class Tracing:
    """The trace of one training.

    Args:
      profile: what is asked for; None for nothing.
      name: of the training.
      start, total: the step that it goes on from, and its last one.
    """

    def __init__(self, profile: Profile | None, name: str, start: int, total: int):
        self._first = self._last = -1
        self._on = False
        if profile is None:
            return
        asked = f"--profile={profile.first}:{profile.last}: {name}"
        if profile.first > total:
            logging.warning("%s has only %d steps: nothing is traced", asked, total)
        elif profile.last <= start:
            logging.warning("%s goes on after step %d: nothing is traced", asked, start)
        else:
            self._first, self._last = max(profile.first, start + 1), min(profile.last, total)
            self._folder = profile.folder / name
            if jax.process_count() > 1:
                self._folder /= f"process_{jax.process_index()}"

    def ends(self, step: int) -> bool:
        """Whether a call of several steps must end at this one, before the trace or with it."""
        return step in (self._first - 1, self._last)

    def before(self, step: int, state: Any) -> bool:
        """Begin if this step is the first; returns whether it is. The steps that `state` waits for are not traced."""
        if step != self._first:
            return False
        jax.block_until_ready(state)
        jax.profiler.start_trace(self._folder)
        self._on = True
        return True

    def after(self, step: int, state: Any) -> bool:
        """End if this step is the last, once `state` is computed; returns whether it is."""
        if step != self._last:
            return False
        jax.block_until_ready(state)
        self.close()
        logging.info("traced steps %d to %d in %s; xprof and TensorBoard show it", self._first, step, self._folder)
        return True

    def close(self) -> None:
        """End a trace that is on: the training may stop before its last step."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
