"""The commented grid that `kdsweep init` writes."""

from importlib.resources import files


def starter_grid() -> str:
    """A grid on embedded data that plans and trains as it is."""
    return (files(__package__) / "starter.yaml").read_text("utf-8")
