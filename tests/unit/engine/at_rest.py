"""What a process that others are forked from has loaded: nothing that is computed, and no garbage to look for."""

import gc
import importlib
import pkgutil

import allo_engine.stages
from allo_engine.importing import loading

with loading():
    for name in ("tests.unit.engine.processes", "allo_engine.__main__", "torch.distributed", "tests.tiny"):
        importlib.import_module(name)
    for module in pkgutil.iter_modules(allo_engine.stages.__path__):
        importlib.import_module(f"allo_engine.stages.{module.name}")
gc.freeze()
