"""Executing a plugin's module."""

from __future__ import annotations

import importlib
import sys
from functools import lru_cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType


def load_module(path: Path, module: str | None) -> ModuleType:
    """Import a module by its name, or execute a file as a module of its own.

    Whatever the module raises goes to the caller, who knows whether that ends a job or is reported. Raises
    ``ImportError`` where the name leads to another file than ``path``.
    """
    if module is not None:
        loaded = importlib.import_module(module)
        found = getattr(loaded, "__file__", None)
        if found is None or Path(found).resolve() != path.resolve():
            raise ImportError(f"{module} was read from {path}, but importing it gives {found}", name=module)
        return loaded
    name = _name(path)
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file", path=str(path))
    state = path.stat()
    code = _compiled(path, state.st_mtime_ns, state.st_size)
    loaded = module_from_spec(spec)
    sys.modules[name] = loaded  # dataclasses and pydantic look names up there while the module executes
    try:
        exec(code, vars(loaded))
    except BaseException:
        del sys.modules[name]
        raise
    return loaded


@lru_cache(maxsize=64)
def _name(path: Path) -> str:
    """Files of one name may lie in several folders, so that the name alone does not tell modules apart."""
    import hashlib

    return f"kdbench_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"


@lru_cache(maxsize=64)
def _compiled(path: Path, modified: int, size: int) -> CodeType:
    """The code of a file as it is: a worker executes it once per job."""
    return compile(path.read_bytes(), str(path), "exec")
