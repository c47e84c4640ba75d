"""``kdbench doctor``: it sees what is there, changes nothing, and says what to do."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from kdbench import checkup
from kdbench.cli import make_app
from kdbench.registry import discover
from tests.helpers.plugins import write_method


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KDBENCH_PLUGINS", str(tmp_path / "drop"))
    (tmp_path / "drop").mkdir()
    return tmp_path


def look(folders: Path) -> dict[tuple[str, str], checkup.Check]:
    return {(check.section, check.name): check for check in checkup.checkup(discover(), folders / "results")}


def test_a_sound_installation_has_no_problem_and_nothing_is_made(folders):
    found = look(folders)
    assert checkup.worst(found.values()) != "problem"
    assert found["folders", "results"].value.startswith(f"{folders}/results (not made yet), ")
    assert found["locks", "store"].value == "none held"
    assert {path.name for path in folders.iterdir()} <= {"drop", "cache"}, "the cache holds the index of plugins"


def test_who_holds_a_lock_is_told_without_touching_it(folders):
    running = folders / "results" / "running"
    running.mkdir(parents=True)
    with FileLock(running / "abc.lock"):
        assert look(folders)["locks", "jobs"].value == f"1 held: abc.lock by process {os.getpid()}"
    assert look(folders)["locks", "jobs"].value == "none held"


def test_a_broken_plugin_is_a_problem(folders):
    write_method(folders / "drop", "ill", old="def train", new="def trian")
    found = look(folders)
    broken = [check for check in found.values() if check.section == "plugins" and check.state == "problem"]
    assert [check.value for check in broken] == ["trian is no hook of kdbench"]
    assert checkup.worst(found.values()) == "problem"


def test_a_folder_that_cannot_be_written_is_a_problem(folders, monkeypatch):
    real = os.access
    locked = folders / "results"
    locked.mkdir()
    # root may write everywhere, whatever the mode says
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked and real(path, mode))
    check = look(folders)["folders", "results"]
    assert check.state == "problem"
    assert check.hint == "choose another with --results"


def test_little_space_is_worth_a_note(folders, monkeypatch):
    monkeypatch.setattr(checkup, "LITTLE_SPACE", 1 << 62)
    assert look(folders)["folders", "cache"].state == "note"


def test_offline_state_is_that_of_the_libraries(folders, monkeypatch):
    for name in checkup.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    assert look(folders)["offline", "Hugging Face hub"].value.startswith("allowed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert look(folders)["offline", "Hugging Face hub"].value == "off: HF_HUB_OFFLINE"


def test_every_extra_is_explained():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert set(checkup.EXTRAS) == set(project["optional-dependencies"])


def test_missing_packages_come_with_the_command(monkeypatch):
    texts = ["numpy>=2", 'no-such-thing>=1; extra == "ray"', 'numpy>=999; extra == "gpu"', 'pluggy>=1; extra == "dev"']
    monkeypatch.setattr(checkup.metadata, "requires", lambda name: texts)
    monkeypatch.setattr(checkup.metadata, "metadata", lambda name: _Metadata())
    missing = checkup.missing_packages()
    assert missing["ray"] == ["no-such-thing"]
    assert missing["gpu"][0].startswith("numpy >=999 (there is ")
    assert missing["dev"] == []
    hints = {check.name: check.hint for check in checkup._packages()}
    assert hints == {"ray": "pip install 'kdbench[ray]'", "gpu": "pip install 'kdbench[gpu]'", "dev": ""}


class _Metadata:
    def get_all(self, name: str) -> list[str]:
        assert name == "Provides-Extra"
        return ["ray", "gpu", "dev"]


def test_locks_of_a_table_are_those_that_are_held(tmp_path):
    table = tmp_path / "locks"
    table.write_text(
        "1: FLOCK  ADVISORY  WRITE 4242 fe:01:99 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 17 fe:01:99 0 EOF\n"
        "2: POSIX  ADVISORY  READ 5 00:2f:100 128 128\n"
    )
    assert checkup.lock_holders(table) == {(0xFE, 1, 99): 4242, (0, 0x2F, 100): 5}
    assert checkup.lock_holders(tmp_path / "none") is None


def test_the_exit_code_says_whether_something_will_fail(folders):
    def doctor():
        return CliRunner().invoke(make_app(), ["doctor", "--json", "--results", str(folders / "results")])

    assert doctor().exit_code == 0
    write_method(folders / "drop", "ill", old="def train", new="def trian")
    assert doctor().exit_code == 2
