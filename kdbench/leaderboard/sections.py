"""What extensions add to pages of results, through ``kdbench_report_sections``."""

from __future__ import annotations

import logging
from pathlib import Path

import pluggy

from kdbench.discovery.extensions import contributions
from kdbench.discovery.records import Broken

log = logging.getLogger(__name__)


def sections(manager: pluggy.PluginManager, results: Path) -> dict[str, str]:
    """Title to Markdown of every section; an extension that fails is reported in the log and left out."""
    found: dict[str, str] = {}
    for extension, given in contributions(manager, "kdbench_report_sections", results=results):
        if isinstance(given, Broken):
            log.warning("%s: %s", given.place, given.reason)
            continue
        try:
            found |= {str(title): str(text).rstrip() for title, text in dict(given).items()}
        except (TypeError, ValueError):
            log.warning("%s: its kdbench_report_sections returned no mapping of titles to texts", extension)
    return found
