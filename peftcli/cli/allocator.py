"""Memory of training steps is kept from one to the next, where it would go back to the system and come again.

A step on a CPU takes and gives gigabytes in blocks of some megabytes. glibc hands most of them back to the kernel at
once, and the kernel has to clear them again for the next layer: up to a tenth of a step went into that. Both knobs are
documented: mallopt(3), and THP_MEM_ALLOC_ENABLE of PyTorch, which asks for its blocks in pages of 2 MB.
"""

from __future__ import annotations

import ctypes
import os

# Whoever has set one of these has an opinion, or another allocator.
_OWN = ("GLIBC_TUNABLES", "LD_PRELOAD", "THP_MEM_ALLOC_ENABLE")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Kept at the end of the heap; mallopt takes an int.
_KEPT = 2**31 - 1
# Blocks up to this size are kept; larger ones, which are weights more than activations, go back when they are free.
# Before 2.35 glibc took no more than the second.
_BLOCKS = (256 << 20, 32 << 20)


def keep_freed_memory() -> bool:
    """Tells the allocator of this process, before PyTorch is imported; whether it did.

    Nothing is done without glibc, or where the environment says anything of allocators.
    """
    if any(name in os.environ for name in _OWN) or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    if not _is_glibc():
        return False
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_TRIM_THRESHOLD, _KEPT)
    return any(mallopt(_M_MMAP_THRESHOLD, size) for size in _BLOCKS)


def _is_glibc() -> bool:
    name = "CS_GNU_LIBC_VERSION"
    known = getattr(os, "confstr_names", {})
    return name in known and (os.confstr(name) or "").startswith("glibc")
