"""Where a person reads what a sweep says; that nobody reads it any more ends nothing."""

import os

from rich.console import Console


class Patient(Console):
    """A console that falls silent when its reader is gone.

    Rich's own ends the thread that wrote, with exit status 1: a launch, or the beat of its lock.
    """

    def on_broken_pipe(self) -> None:
        """Say nothing more, at the end of the process neither."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)
