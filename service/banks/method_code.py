"""Which code a method's run passes through: banks of runs and qualifications hold for exactly that code."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

import unlearning
from service.banks.build import training_code_version


@cache
def method_code_version(name: str) -> str:
    """Digest of the code that a method's run passes through: a change makes its banks a miss, and only its.

    Raises:
        MethodError: there is no method of that name.
    """
    from unlearning.methods import find_method  # torch, which nobody needs who looks up or purges

    package, waiting = Path(unlearning.__file__).parent, ["running", find_method(name).function.__module__]
    files: dict[str, str] = {}
    while waiting:
        module = waiting.pop().removeprefix("unlearning.")
        if module in files:
            continue
        files[module] = package.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        waiting += re.findall(r"^from unlearning\.((?:methods|procedures)\.\w+) import", files[module], re.MULTILINE)
    words = (training_code_version(), *(files[module] for module in sorted(files)))
    return hashlib.sha256("\n".join(words).encode()).hexdigest()
