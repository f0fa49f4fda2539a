"""A skipped test hides what it does not check: on CI only missing photographs are an excuse."""

import os

import pytest


class PhotographsMissingError(pytest.skip.Exception):
    """The one reason for which a test may be skipped on CI."""


def on_ci() -> bool:
    """Whether this is continuous integration, whose services set ``CI=true``."""
    return os.environ.get("CI") == "true"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    excused = call.excinfo is not None and call.excinfo.errisinstance(PhotographsMissingError)
    if report.skipped and not excused and not hasattr(report, "wasxfail"):
        _fail_on_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """For skips of whole files, such as `pytest.importorskip` among their imports."""
    report = yield
    if report.skipped:
        _fail_on_ci(report)
    return report


def _fail_on_ci(report):
    if on_ci():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"only tests of photographs may be skipped on CI; {reason}"
