"""Importing this module registers every built-in method: each file of this folder is one."""

import importlib
import pkgutil

import hide_llava.methods as package

for module in pkgutil.iter_modules(package.__path__):
    if module.name not in ("all", "base", "routed"):
        importlib.import_module(f"{package.__name__}.{module.name}")
