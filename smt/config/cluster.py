"""The cluster as `params/cluster.yaml` describes it: its GPUs, and what a training asks of it.

Nothing of it is part of a fingerprint.
"""

from typing import Annotated

from pydantic import Field

from smt.config.types import Name, Positive, PositiveFloat, Strict


class Gpu(Strict):
    """A kind of GPU. Its two figures say where they come from, or that they are assumed."""

    title: str
    capability: PositiveFloat
    """NVIDIA's compute capability, such as 8.0: what code has to be built for."""
    memory_gb: PositiveFloat
    """As the data sheet has it, in 10^9 bytes."""
    tflops: PositiveFloat
    """Dense fp16 or bf16 on tensor cores with fp32 sums, in 10^12 FLOPs per second."""
    source: str
    """Where `tflops` stands."""
    efficiency: Annotated[float, Field(gt=0, le=1)]
    """Fraction of `tflops` that a training of SMT-T in fp16 or bf16 reaches, reading of images
    included."""
    efficiency_source: str
    """Where `efficiency` was measured, or `assumed` and from what."""
    recompute: tuple[Name, ...] = ()
    """Experiments that are trained on these GPUs as if their recipe had `recompute: true`."""


class Speed(Strict):
    """How many MACs a second other models reach beside SMT-T, of which efficiencies are."""

    source: str
    """What `models` follow from."""
    models: dict[Name, PositiveFloat]
    """Over the MACs a second of SMT-T."""

    def of(self, model: str) -> float:
        """Return that of a model; 1 of SMT-T, and of what is not listed: its ablations."""
        return self.models.get(model, 1.0)


class Share(Strict):
    """What the trainings of one recipe or experiment get in place of the scale's."""

    gpus: Positive


class ScaleShare(Strict):
    """What the trainings of a scale get."""

    gpus: Positive
    """For each training: one process each, which share the recipe's global batch."""
    startup_minutes: PositiveFloat
    """From the start of a job to its first step."""
    recipes: dict[Name, Share] = {}
    experiments: dict[Name, Share] = {}

    def gpus_of(self, experiment: str, recipe: str) -> tuple[int, tuple[str, ...]]:
        """Return the GPUs of a training, and the key below this record that says so."""
        if experiment in self.experiments:
            return self.experiments[experiment].gpus, ("experiments", experiment, "gpus")
        if recipe in self.recipes:
            return self.recipes[recipe].gpus, ("recipes", recipe, "gpus")
        return self.gpus, ("gpus",)


class Cluster(Strict):
    """Where trainings run, and for how long at a time."""

    gpu: Name
    """Kind of the GPUs in use, one of `kinds` that the lock's torch is built for."""
    least_capability: PositiveFloat
    """Of the GPUs that requirements.lock's torch is built for (`torch.cuda.get_arch_list()`)."""
    gpus_per_node: Positive
    wall_hours: PositiveFloat
    """Time limit of a job; a longer training is requeued and resumes."""
    tail_minutes: Annotated[float, Field(ge=0)]
    """Lost at the end of a job that is cut off: the notice before the limit, and the requeue."""
    margin: Annotated[float, Field(ge=1)]
    """Time asked for over the time estimated, where the limit allows it."""
    floor_minutes: Positive
    """Least time asked for."""
    scales: dict[Name, ScaleShare]
    speed: Speed
    kinds: dict[Name, Gpu]

    @property
    def kind(self) -> Gpu:
        """The GPUs in use."""
        return self.kinds[self.gpu]

    def problem_of(self, kind: str) -> str | None:
        """Return why trainings cannot run on GPUs of a kind, in a phrase with what is valid."""
        usable = [
            name for name, gpu in self.kinds.items() if gpu.capability >= self.least_capability
        ]
        if kind in usable:
            return None
        valid = f"valid: {', '.join(usable)}"
        if kind not in self.kinds:
            return f"no kind {kind!r} in params/cluster.yaml; {valid}"
        return (
            f"{kind} has compute capability {self.kinds[kind].capability}, and the torch of "
            f"requirements.lock is built for {self.least_capability} and newer; {valid}"
        )

    def startup_hours(self, scale: str) -> float:
        """Return the hours of a job before its first step."""
        return self.scales[scale].startup_minutes / 60

    @property
    def tail_hours(self) -> float:
        """Hours lost at the end of a job that is cut off."""
        return self.tail_minutes / 60

    def useful_hours(self, scale: str) -> float:
        """Return the hours that a job which is cut off trains; 0 or less if there are none."""
        return (60 * self.wall_hours - self.scales[scale].startup_minutes - self.tail_minutes) / 60
