"""A track whose jobs take milliseconds, for tests of everything that runs jobs.

``EXTENSION`` is given as a plugin; methods are written with ``write_method``.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

EXTENSION = Path(__file__).with_name("extension.py")

CARD = """
from kdbench import Baseline, Field, Params, hookimpl

BASELINE = Baseline(slug="{slug}", title="{slug}", track="toy", tasks=["*"])
"""

PLAIN = """
@hookimpl
def train(task, params):
    student = task.student()
    task.fit(student, lambda model, batch: ((model(batch.x) - batch.y) ** 2).mean())
    return student
"""


def write_method(folder: Path, slug: str, body: str = PLAIN) -> Path:
    """A file with a method ``toy/<slug>``: its card and imports, then ``body``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug}.py"
    path.write_text(CARD.format(slug=slug) + textwrap.dedent(body))
    return path
