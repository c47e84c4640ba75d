"""Ctrl-C, pressed on a real terminal once and twice, SIGTERM and a closed window: stopped, told, and nothing lost."""

from __future__ import annotations

import signal
import time

from tests.helpers.scenes import Terminal, kept

STUBBORN = """
@hookimpl
def train(task, params):
    import signal
    with traced(task):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while not os.path.exists(os.environ["TRACE"] + "-go"):
            time.sleep(0.01)
        return trained(task)
"""
"""Does not end when it is asked to."""


def begun(here, count):
    return lambda: len(here.traced("begin")) >= count


def test_ctrl_c_once_stops_cleanly_and_says_what_is_left(scene):
    here = scene("quick", "waits", seeds=2)
    terminal = Terminal(here)
    terminal.until(lambda: len(here.stamps()) == 2 and begun(here, 4)(), "two jobs are done, two run")
    before = here.stamps()
    terminal.press_ctrl_c()
    assert terminal.end() == 130
    here.require_quiet()
    assert here.stamps() == before, "what was interrupted has no outcome, what was done has"
    assert "4 jobs: 2 ok, 2 left" in terminal.text
    assert "the same command runs the 2 jobs that are left" in terminal.text
    assert "Traceback" not in terminal.text
    assert terminal.text.rfind("\x1b[?25h") >= terminal.text.rfind("\x1b[?25l"), "the cursor is shown again"
    here.let_go()
    again = here.run()
    assert again.code == 0, again.text
    assert not kept(before, here.stamps())
    here.require_finished(jobs=4)


def test_ctrl_c_twice_stops_at_once(scene):
    here = scene("stubborn", bodies={"stubborn": STUBBORN}, seeds=1)
    terminal = Terminal(here)
    terminal.until(begun(here, 1), "a job begins")
    terminal.press_ctrl_c()
    terminal.until(lambda: "stop" in terminal.text, "it says that it stops")
    pressed = time.monotonic()
    terminal.press_ctrl_c()
    assert terminal.end() == 130
    here.require_quiet()
    assert time.monotonic() - pressed < 30, "it does not wait for a job that does not end"
    assert "Traceback" not in terminal.text
    assert here.stamps() == {}
    assert list((here.results / "running").iterdir()) == []


def test_signals_of_the_system_end_everything_and_lose_nothing(scene):
    """As a closed window and a batch system send them."""
    here = scene("quick", "waits", seeds=1)
    for number, code in ((signal.SIGHUP, -signal.SIGHUP), (signal.SIGTERM, 128 + signal.SIGTERM)):
        known = len(here.traced("begin"))
        run = here.start(name=number.name)
        run.until(lambda known=known: here.stamps() and len(here.traced("begin")) > known + (not known), "a job runs")
        before = here.stamps()
        run.process.send_signal(number)
        assert run.end() == code, run.text
        here.require_quiet()
        assert here.stamps() == before
    here.let_go()
    last = here.run()
    assert last.code == 0, last.text
    assert not kept(before, here.stamps())
    here.require_finished(jobs=2)


def test_ctrl_c_before_the_first_job_leaves_nothing(scene):
    here = scene("quick", seeds=1)
    terminal = Terminal(here)
    terminal.until((here.results / "running").exists, "it gets to its results folder")
    terminal.press_ctrl_c()
    assert terminal.end() == 130
    here.require_quiet()
    assert "Traceback" not in terminal.text
    again = here.run()
    assert again.code == 0, again.text
    here.require_finished(jobs=1)
