"""What a person sees of an evaluation that takes hours."""

from smt.datasets.progress import LiveBar
from smt.engine.progress import duration


class EvaluationProgress(LiveBar):
    """Images that are done, top-1 so far and the time that is left."""

    def __init__(self, title: str, images: int, done: int) -> None:
        """`done` images of `images` come from earlier calls."""
        super().__init__(
            title, "images, top-1 {task.fields[top1]:.2f},", total=images, done=done,
            top1=float("nan"),
        )  # fmt: skip
        self._images, self._first = images, done

    def show(self, done: int, top1: float) -> None:
        """Say how many images are done, and the share in percent that is right in one guess."""
        self._bar.update(self._task, completed=done, top1=top1)
        rate = (done - self._first) / self._seconds
        left = duration((self._images - done) / rate) if rate else "unknown"
        self._say(
            f"{done:,} of {self._images:,} images, top-1 {top1:.2f}, {rate:.1f} images/s, "
            f"{left} left"
        )
