"""The interface of an optimizer config. A new optimizer is a frozen dataclass with these two methods."""

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import optax

from gptjax.optim.schedules import Step
from gptjax.sharding.axes import Scalar
from gptjax.sharding.mesh import MeshConfig


@runtime_checkable
class Optimizer(Protocol):
    """Anything that builds an optax transformation. A config file may define its own class; nothing registers it."""

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]

    def build(self, *, steps: int, mesh: MeshConfig) -> optax.GradientTransformation:
        """The transformation for a run of `steps` whose parameters are sharded over `mesh`.

        It maps gradients to updates that are added to the parameters, so it includes the negative learning rate.
        The training step passes `step=`, the number of completed steps, to `update`. A transformation that takes no
        extra arguments, such as `optax.lion(1e-4)`, works as it is.
        """
        ...

    def learning_rate_at(self, step: Step, *, steps: int) -> Scalar:
        """The learning rate to log for a step of a run of `steps`."""
        ...
