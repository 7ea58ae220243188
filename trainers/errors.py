"""What can go wrong in training that is neither bad input nor a bug."""


class DivergedError(Exception):
    """A loss is no longer finite; more steps cannot mend it."""

    def __init__(self, *, loss: str, step: int, learning_rate: float) -> None:
        self.step = step
        super().__init__(f"{loss} at step {step}; learning_rate is {learning_rate:g}")


class CheckpointError(Exception):
    """A checkpoint is of another trial, and going on from it would give wrong numbers."""


class FrozenError(Exception):
    """A teacher's weights changed while it taught."""


class StoppedError(Exception):
    """Whoever drives the training asked it to stop where no step can be finished."""
