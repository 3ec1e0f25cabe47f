"""`method=./my_method.py`: a method from a Python file that belongs to no package.

A run keeps the file's place and its hash in the `method:` section of its configuration (`file`, `file_sha256`), so that every
later command finds the method by the run alone, and notices when its code is no longer what trained the run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.methods import base
from hide_llava.methods.base import Method


def load_file(file: Path, name: str | None = None, sha256: str | None = None) -> type[Method]:
    """The method that a Python file registers; `name`, where it registers several.

    sha256: what the file must still be, for a stored run. A file that is loaded already is not executed again.

    Raises:
        UserError: no such file, an error in it, no method in it or not this one, or other content than the run's.
    """
    import hide_llava.methods.all  # noqa: F401  (so that a name that is taken is noticed)

    file = file.resolve()
    if not file.is_file():
        known = base.REGISTRY.get(name or "")
        if sha256 is not None and known is not None and _hash_of(known) == sha256:
            return known  # the same code was read from another place
        where = ". Put it back, or say where it is now with method.file=PATH." if sha256 else "; give the path of a Python file."
        raise UserError(f"method file {file}: no such file{where}")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if sha256 is not None and found != sha256:
        raise UserError(
            f"method '{name}': {file} has changed since this run was made (sha256 {sha256[:8]}… then, {found[:8]}… now), "
            "so its stages need not fit it. Give the old file back, or start a new run with another output=."
        )
    module = _module_name(file)
    if getattr(sys.modules.get(module), "file_sha256", None) != found:
        _execute(file, module, found)
    return _choose(file, [cls for cls in base.REGISTRY.values() if cls.__module__ == module], name)


def file_sha256(cls: type[Method]) -> str:
    """Hash of the file that a method was loaded from."""
    return str(_hash_of(cls))


def _hash_of(cls: type[Method]) -> str | None:
    return getattr(sys.modules.get(cls.__module__), "file_sha256", None)


def _module_name(file: Path) -> str:
    """One for each place, so that two files that register one name are told apart, and a file replaces only itself."""
    return f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"


def _execute(file: Path, name: str, sha256: str) -> None:
    """Run the file as a module. Its folder comes last on the path, so that it may import its neighbours."""
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    module.file_sha256 = sha256
    before = sys.modules.get(name)
    sys.modules[name] = module  # pydantic looks the module of a Config up while it is executed
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the file does when it is executed
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}{_line(error, file)}: {type(error).__name__}: {_message(error)}") from None


def _line(error: BaseException, file: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f", line {lines[-1]}" if lines else ""


def _message(error: BaseException) -> str:
    return error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split()) or "no message"


def _choose(file: Path, registered: list[type[Method]], name: str | None) -> type[Method]:
    if not registered:
        raise UserError(f"{file}: registers no method; put @register above a subclass of Method that has a name.")
    if name is None and len(registered) == 1:
        return registered[0]
    names = ", ".join(cls.name for cls in registered)
    if name is None:
        raise UserError(
            f"{file}: registers several methods ({names}); say which with `method: {{name: …}}` in {file.stem}.yaml beside it."
        )
    for cls in registered:
        if cls.name == name:
            return cls
    raise UserError(f"{file}: registers no method '{name}', but {names}.")
