"""What a command does to its own process: imports are not collected meanwhile, and training keeps freed memory."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from peftcli.cli.imports import large_imports

# Takes and gives 640 MB in blocks of 32 MB, behind one that stays, and prints what of it is still resident, in MB.
TAKES = """
import os, sys
from peftcli.cli.allocator import keep_freed_memory
print(keep_freed_memory(), os.environ.get("THP_MEM_ALLOC_ENABLE"), "torch" in sys.modules)
import torch

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") // 10**6

torch.ones(8 << 20)
before = resident()
blocks = [torch.ones(8 << 20) for _ in range(20)]
assert resident() > before + 600
del blocks
print(resident() - before)
"""


def taken(**environment: str) -> tuple[str, int]:
    names = {"THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES", "LD_PRELOAD"}
    own = {name: value for name, value in os.environ.items() if name not in names and "MALLOC" not in name}
    told = subprocess.run(
        [sys.executable, "-c", TAKES], capture_output=True, text=True, check=True, env=own | environment
    )
    first, last = told.stdout.splitlines()
    return first, int(last)


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="there is no glibc")
def test_freed_memory_stays_for_the_next_step():
    told, kept = taken()
    assert told == "True 1 False"
    assert kept > 500


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE"])
def test_an_environment_that_says_something_of_allocators_is_left_alone(name):
    value = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4", "MALLOC_ARENA_MAX": "4"}.get(name, "0")
    told, kept = taken(**{name: value})
    assert told == f"False {'0' if name.startswith('THP') else None} False"
    assert kept < 100


def test_nothing_is_collected_while_much_is_imported_and_all_is_afterwards():
    with large_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), large_imports():
        raise ImportError
    assert gc.isenabled()
