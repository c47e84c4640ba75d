"""What each family of worlds says of data, students and scores."""

from __future__ import annotations

from pkgutil import resolve_name

from kdbench.tracks.policy.kinds.base import Kind

KINDS = {
    "nav": "kdbench.tracks.policy.kinds.nav:NavKind",
    "desk": "kdbench.tracks.policy.kinds.desk:DeskKind",
    "gym": "kdbench.tracks.policy.kinds.gym:GymKind",
    "bandits": "kdbench.tracks.policy.kinds.offline:OfflineKind",
    "lake": "kdbench.tracks.policy.kinds.offline:OfflineKind",
    "mdps": "kdbench.tracks.policy.kinds.online:OnlineKind",
}
"""``module:class`` by kind of world."""


def kind_of(name: str) -> type[Kind]:
    """The class for a kind of world."""
    found: type[Kind] = resolve_name(KINDS[name])
    return found
