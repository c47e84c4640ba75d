"""Pictures that jobs left, copied into the site.

Any picture that a job writes into ``artifacts`` (``task.artifact("grid.png")``) or ``samples`` is shown on the page of
its method. Its caption is the text of the file of the same name that ends in ``.txt``, or else its name in words.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from kdbench.leaderboard.report.names import page_name
from kdbench.store import spool

if TYPE_CHECKING:
    from kdbench.leaderboard.report.data import Sample

LARGEST = 1 << 20
"""Bytes of a picture; larger ones are left out."""
LONGEST = 400
"""Characters of a caption; longer ones are cut."""


def sample_file(sample: Sample) -> str:
    """Path of a picture in the site."""
    return f"samples/{page_name(sample.id, sample.path)}{PurePosixPath(sample.path).suffix.lower()}"


def usable(samples: Mapping[str, Sequence[Sample]], results: Path) -> dict[str, list[Sample]]:
    """Those pictures that are files of their job's folder, and not too large; links could show what is elsewhere.

    With their captions.
    """
    return {
        method: [replace(sample, caption=_caption(results, sample)) for sample in found if _is_own(results, sample)]
        for method, found in samples.items()
    }


def _caption(results: Path, sample: Sample) -> str:
    """What stands beside the picture, on one line; without that the name of its file in words."""
    beside = PurePosixPath(sample.path).with_suffix(".txt")
    if _is_own(results, replace(sample, path=str(beside))):
        with _source(results, replace(sample, path=str(beside))).open(encoding="utf-8", errors="replace") as file:
            words = file.read(4 * LONGEST).split()
    else:
        words = beside.stem.replace("-", " ").replace("_", " ").split()
    text = " ".join(words)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _source(results: Path, sample: Sample) -> Path:
    return spool.job_folder(results, sample.id) / sample.path


def _is_own(results: Path, sample: Sample) -> bool:
    path = _source(results, sample)
    if not path.is_file() or not path.resolve().is_relative_to(spool.job_folder(results, sample.id).resolve()):
        return False
    return path.stat().st_size <= LARGEST


def copy_samples(samples: Mapping[str, Sequence[Sample]], results: Path, out: Path) -> None:
    """Copy pictures to ``out/samples``."""
    for found in samples.values():
        for sample in found:
            target = out / sample_file(sample)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_source(results, sample), target)
