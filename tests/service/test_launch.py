"""Starting, watching and stopping child processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from service.errors import StartupError
from service.launch import Processes, environment, free_ports, require_temporary_folder, serve_command, stop
from service.settings import Settings
from tests.processes import is_alive
from tests.waiting import PATIENCE_SECONDS, line_of

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(3600)"


@pytest.mark.parametrize("has_own_session", [False, True])
def test_a_child_that_will_not_end_is_ended_with_what_it_started(has_own_session: bool) -> None:
    """BentoML gives each serving process a session of its own."""
    started = f"[sys.executable, '-c', {DEAF!r}], start_new_session={has_own_session}"
    program = f"import subprocess, sys; subprocess.Popen({started}).wait()"
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert line_of(process) == "up\n"
    stop(process, patience_seconds=5)
    assert process.communicate(timeout=PATIENCE_SECONDS)[0] == ""  # the grandchild held the other end
    assert not is_alive(process.pid)


def test_a_child_that_ended_is_told_with_its_last_words(tmp_path: Path) -> None:
    with Processes(Settings(home=tmp_path), patience_seconds=1) as processes:
        command = [sys.executable, "-c", "print('the disk is full'); raise SystemExit(3)"]
        processes.worker = processes._start(command, dict(os.environ), "worker.log")
        processes.worker.wait(PATIENCE_SECONDS)
        asked: list[str] = []
        with pytest.raises(StartupError, match=r"status 3(?s:.)*the disk is full"):
            processes.wait_until(lambda: asked.append("once"), "nothing", PATIENCE_SECONDS)
        assert asked == ["once"]  # and did not wait


def test_waiting_has_an_end(tmp_path: Path) -> None:
    with (
        Processes(Settings(home=tmp_path)) as processes,
        pytest.raises(StartupError, match="Expected a wonder within 0 s"),
    ):
        processes.wait_until(lambda: False, "a wonder", 0.2)


def test_children_get_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path, hold_seconds=2.5, port=4711)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_free_ports_differ() -> None:
    assert len(set(free_ports(5))) == 5


def test_free_ports_are_none_that_the_system_may_give_to_an_outgoing_connection_meanwhile() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert first > 20_000  # else there is too little room below
    assert not [port for port in free_ports(50) if first <= port <= last]


def test_what_is_not_set_is_not_handed_on_as_a_word(tmp_path: Path) -> None:
    """None would reach the child as a file called None."""
    given = environment(Settings(home=tmp_path))
    assert "EXPUNGE_TUNED" not in given
    assert "None" not in {value for name, value in given.items() if name.startswith("EXPUNGE_")}
    _, serving = serve_command(Settings(home=tmp_path))
    assert "None" not in {value for name, value in serving.items() if name.startswith("EXPUNGE_")}


def test_settings_travel_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/elsewhere")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    settings = Settings(home="relative/home", port=4000, api_workers=3, lease_seconds=2.5, log_format="json")
    arguments, environment = serve_command(settings)
    assert arguments[:5] == [sys.executable, "-m", "bentoml", "serve", "service.app:Expunge"]
    assert arguments[arguments.index("--port") + 1] == "4000"
    home = str(tmp_path / "relative" / "home")
    assert environment["EXPUNGE_HOME"] == home  # the processes work in another folder
    assert environment["BENTOML_HOME"].startswith(home)
    assert environment["BENTOML_DO_NOT_TRACK"] == "True"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["PATH"] == os.environ["PATH"]
    assert "PROMETHEUS_MULTIPROC_DIR" not in environment
    for name, value in environment.items():
        if name.startswith("EXPUNGE_"):
            monkeypatch.setenv(name, value)
    assert Settings() == settings.model_copy(update={"home": settings.home.resolve()})


def test_without_a_folder_for_temporary_files_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the root is read-only; what needs it first is BentoML, and waiting for it would take two minutes."""

    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    require_temporary_folder()
    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(StartupError, match=r"mount an empty folder at /tmp, or name one in TMPDIR"):
        require_temporary_folder()
    with pytest.raises(StartupError, match="TMPDIR"), Processes(Settings(home=tmp_path)):
        pass
