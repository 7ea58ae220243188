"""Small grids for tests, and facts that need no installed package."""

from pathlib import Path
from textwrap import dedent

from kdsweep.search_spaces import Grid, ModelFacts, Plan, TaskFacts, expand, read_grid
from kdsweep.search_spaces.task import Task, Teacher

MINILM = ModelFacts("bert", 6, 384, 12, 1536, 30522, 512, 2)
TWO_CLASSES = TaskFacts(2)

HEAD = """\
name: test
task: {name: tweets, max_length: 64}
teacher: {model: teacher, fine_tune: {epochs: 1}}
"""


class KnownFacts:
    """The same answer for every model and task."""

    def __init__(
        self, model: ModelFacts | None = MINILM, task: TaskFacts | None = TWO_CLASSES
    ) -> None:
        self._model = model
        self._task = task

    def model(self, teacher: Teacher) -> ModelFacts | None:
        return self._model

    def task(self, task: Task) -> TaskFacts | None:
        return self._task


def grid_of(body: str, head: str = HEAD) -> Grid:
    return read_grid(head + dedent(body), file="grid.yaml", base=Path("/base"))


def plan_of(body: str, *, head: str = HEAD, facts: KnownFacts | None = None) -> Plan:
    return expand(grid_of(body, head), facts or KnownFacts())
