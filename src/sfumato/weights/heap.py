"""What the C library does with memory that was freed.

glibc raises the size from which pieces are mapped one by one, up to 32 MB, with every larger piece
that is freed; what is smaller then stays in its heap, in pieces that the next layer does not fit
into. Of the released model that is 0.6 to 1.8 GB beside the weights.
"""

from __future__ import annotations

import ctypes
import sys

from sfumato.settings import Settings

LARGE = 1 << 30  # bytes of weights from which it matters
_MMAP_THRESHOLD = -3  # mallopt's number for it
_SIZE = 1 << 20


def give_back_freed() -> bool:
    """Have pieces of 1 MB and more go back to the system when they are freed.

    For the whole process, and for good. False where that is not done: without glibc, or where the
    environment says something of its own about it.
    """
    if sys.platform != "linux" or Settings.from_environment().allocator:
        return False
    try:
        change = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(change(_MMAP_THRESHOLD, _SIZE))
