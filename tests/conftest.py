"""Fixtures that tests of several packages share, and the table of faults."""

from collections.abc import Generator
from dataclasses import astuple

import pytest
from hypothesis import settings
from world import World, make_world

# A test must not fail because its machine is busy.
settings.register_profile("kdsweep", deadline=None)
settings.load_profile("kdsweep")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny task with a prepared teacher; made once a session."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Notes which row of the table of faults a test is."""
    report = yield
    if (marker := item.get_closest_marker("fault")) is not None:
        report.user_properties.append(("fault", astuple(marker.args[0])))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table of faults."""
    rows = sorted(
        (*fault, report.outcome, report.duration)
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and is_result(report)
        for name, fault in report.user_properties
        if name == "fault"
    )
    if rows:
        terminalreporter.section("faults")
    for number, what, expected, outcome, seconds in rows:
        line = f"{number:3}  {outcome:7} {seconds:6.1f} s  {what}: {expected}"
        terminalreporter.write_line(line)


def is_result(report: pytest.TestReport) -> bool:
    """Whether a report says how a test came out: that of its call, or of what kept it from it."""
    return report.when == "call" or report.outcome != "passed"
