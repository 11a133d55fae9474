"""`trainer refresh --every`: the command of the page, with a collector and refreshes that are played."""

import os
import signal
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.unit.trainer.service.test_loop import Played, PlayedRefresh
from trainer.__main__ import main
from trainer.service import loop
from trainer.service.cycle import CycleResult


class Refreshes(PlayedRefresh):
    """Asks the process to stop during the third one, as `kill` does."""

    def run(self, collected: object) -> CycleResult:
        result = super().run(collected)  # type: ignore[arg-type]
        if self._played.told.count("refresh") == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return result


def test_it_refreshes_again_and_again_until_sigterm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    played = Played([], [], [])
    monkeypatch.setattr("trainer.service.lease._SETTLE_SECONDS", 0.0)
    monkeypatch.setattr("trainer.commands.settings.configure_logs", lambda *_, **__: None)  # pytest's
    monkeypatch.setattr(loop, "collector_of", lambda *_, **__: played)
    monkeypatch.setattr(loop, "Cycle", lambda *_, **__: played)
    monkeypatch.setattr(loop, "Refresh", lambda *_, **__: Refreshes(played))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXTCLICK_TRAINER__DEVICE", "cpu")
    monkeypatch.setattr("sys.argv", ["trainer", "refresh", "--every", "20ms", "--json"])
    with capture_logs() as logs, pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert [what for what in played.told if what != "between"] == ["collect", "refresh"] * 3
    assert [line["event"] for line in logs].count("next refresh") == 3
    assert capsys.readouterr().out == '{"outcome":"skipped","reasons":["nothing new"],"version":null}\n'


def test_a_trainer_that_would_never_refresh_refuses_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trainer.commands.settings.configure_logs", lambda *_, **__: None)  # pytest's
    monkeypatch.setenv("NEXTCLICK_TRAINER__REFRESH_EVERY", "1h")
    monkeypatch.setattr("sys.argv", ["trainer", "run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "no refresh fits between two cycles, which are 3600 s apart (trainer.every)" in capsys.readouterr().err
