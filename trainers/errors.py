"""What can go wrong in training that is neither bad input nor a bug."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a computation had too little memory: less of it at once may succeed.

    PyTorch has a class for accelerators; its CPU allocator raises a plain `RuntimeError`.
    """
    if isinstance(error, MemoryError):
        return True
    names = [kind.__name__ for kind in type(error).__mro__]
    return isinstance(error, RuntimeError) and (
        "OutOfMemoryError" in names or "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


class BatchMemoryError(RuntimeError):
    """Memory ran out with the batch in as many parts as it has rows."""

    def __init__(self, error: BaseException, *, micro_batches: int) -> None:
        self.micro_batches = micro_batches
        super().__init__(f"not even one row of the batch at a time fits into memory: {error}")


class DivergedError(Exception):
    """A loss is no longer finite; more steps cannot mend it."""

    def __init__(self, *, loss: str, step: int, learning_rate: float) -> None:
        self.step = step
        self.learning_rate = learning_rate
        super().__init__(f"{loss} at step {step}; learning_rate is {learning_rate:g}")


class CheckpointError(Exception):
    """A checkpoint is of another trial, and going on from it would give wrong numbers."""


class FrozenError(Exception):
    """A teacher's weights changed while it taught."""


class StoppedError(Exception):
    """Whoever drives the training asked it to stop where no step can be finished."""
