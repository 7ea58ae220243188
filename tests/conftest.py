"""Fixtures that tests of several packages share, how many run at once, and the table of faults."""

import os
from collections.abc import Generator

import pytest
from fault_table import FAULTS, Fault, Result, fault_of, lines
from hypothesis import settings
from world import World, make_world

# A test must not fail because its machine is busy.
settings.register_profile("kdsweep", deadline=None)
settings.load_profile("kdsweep")

COLLECTED = pytest.StashKey[frozenset[Fault]]()
"""The faults for which there are tests, whether they are run or not."""


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: launches wait for Ray, for locks and for disks."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny task with a prepared teacher; made once a session."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Notes for which faults there are tests, before any test is left out."""
    config.stash[COLLECTED] = frozenset(filter(None, map(fault_of, items)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Notes which row of the table of faults a test is."""
    report = yield
    if (row := fault_of(item)) is not None:
        report.user_properties.append(("fault", tuple(row)))
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Prints the table of faults: all of it where faults were asked for, else what was run."""
    results = [
        Result(Fault(*row), report.outcome, report.duration, why_skipped(report))
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and is_result(report)
        for name, row in report.user_properties
        if name == "fault"
    ]
    collected = config.stash.get(COLLECTED, frozenset()) | {result.fault for result in results}
    if "fault" in config.option.markexpr:
        numbers = set(FAULTS)
    else:
        numbers = {result.fault.number for result in results}
        collected = {result.fault for result in results}
    if numbers:
        terminalreporter.section("faults")
        for line in lines(results, collected=collected, numbers=numbers):
            terminalreporter.write_line(line)


def why_skipped(report: pytest.TestReport) -> str:
    """The reason that a skipped test gives."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return ""


def is_result(report: pytest.TestReport) -> bool:
    """Whether a report says how a test came out: that of its call, or of what kept it from it."""
    return report.when == "call" or report.outcome != "passed"
