"""A tool that is missing is named: skipped on a user's machine, insisted on where CI is."""

import pytest
from programs import tool


def test_a_missing_tool_skips_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs no-such-tool: make deploy-tools"):
        tool("no-such-tool")


def test_a_missing_tool_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="needs no-such-tool: make deploy-tools"):
        tool("no-such-tool")


def test_a_tool_on_the_path_will_do() -> None:
    assert tool("sh").endswith("/sh")
