"""Why a launch is refused or ends early, apart from wrong input."""


class SweepLockedError(Exception):
    """Another launch holds the sweep. The command line exits with 73."""


class NoRoomError(Exception):
    """Less is free on the disk than the sweep needs. The command line exits with 74."""


class NothingMatchesError(Exception):
    """There is nothing of what was asked for. The command line exits with 4."""


class ClusterUnreachableError(Exception):
    """No Ray cluster answers at the address. The command line exits with 75."""


class ClusterLostError(Exception):
    """The cluster was there and is not any more. The command line exits with 75."""


class StaleEpochError(Exception):
    """A newer launch has taken the sweep over; nothing more may be committed here."""


class WouldDeactivateError(Exception):
    """Completed trials that the new grid no longer names; the person has not agreed."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(
            f"the grid no longer names {count} completed trial{'s' * (count != 1)} of this sweep: "
            "they stay in the store and leave the tables"
        )
