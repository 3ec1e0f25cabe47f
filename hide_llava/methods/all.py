"""Importing this module registers every built-in method: a file of this folder is one, or what several share."""

import importlib
import pkgutil

import hide_llava.methods as package

for module in pkgutil.iter_modules(package.__path__):
    if module.name not in ("all", "base", "routed"):
        importlib.import_module(f"{package.__name__}.{module.name}")
