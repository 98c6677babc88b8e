"""Trainings in other processes, on any host, that wait at a step until a test lets them go on."""

import os
from pathlib import Path

HOLD_STEP = 5

_SITECUSTOMIZE = '''\
"""Each training waits after HOLD_STEP steps while a file of its name is in the folder HELD."""

import importlib.machinery
import os
import sys
import time
from pathlib import Path

HELD = Path(os.environ["HELD"])


class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "smt.engine.trainer":
            return None
        spec = super().find_spec(name, path, target)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            hold(module.Trainer)

        spec.loader.exec_module = exec_module
        return spec


def hold(trainer):
    beat = trainer._report_alive

    def beat_and_wait(self):
        beat(self)
        files = [HELD / name for name in sys.argv[1:] if (HELD / name).is_file()]
        if not files or self.state.step < int(os.environ["HOLD_STEP"]):
            return
        Path(f"{files[0]}.waits").touch()
        while files[0].exists() and not self.stop.requested:
            time.sleep(0.02)

    trainer._report_alive = beat_and_wait


sys.meta_path.insert(0, Finder)
'''


class Holds:
    """A folder with a file for each experiment whose trainings are held.

    All of their processes wait at the step, and end if they are asked to stop.
    """

    def __init__(self, folder: Path) -> None:
        self._held, self._site = folder / "held", folder / "site"
        self._held.mkdir(parents=True)
        self._site.mkdir()
        (self._site / "sitecustomize.py").write_text(_SITECUSTOMIZE)

    def environment(self) -> dict[str, str]:
        """Return the variables of trainings that can be held."""
        path = [str(self._site), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            "HELD": str(self._held), "HOLD_STEP": str(HOLD_STEP),
            "PYTHONPATH": os.pathsep.join(path),
        }  # fmt: skip

    def hold(self, *experiments: str) -> None:
        for name in experiments:
            (self._held / name).touch()

    def let_go(self, *experiments: str) -> None:
        for name in experiments:
            (self._held / name).unlink()

    def is_held(self, experiment: str) -> bool:
        """Return whether a training has reached the step since it was last let go."""
        return (self._held / f"{experiment}.waits").exists()
