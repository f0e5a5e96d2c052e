"""Mailboxes in device memory for the modules that share one GPU, and the arbiter that wakes whoever has mail.

Make a graph with `Builder`, run it with `with graph.build() as runtime:`, post and take with the ends that
`runtime.sender` and `runtime.receiver` give. Without a GPU the same runs as CPU threads, the twin. Every wait has a
bound in seconds, releases the interpreter's lock, and ends on Ctrl-C. What goes wrong is a `warpmail.Error`, with a
class for each reason.
"""

import atexit as _atexit

from . import _warpmail
from ._warpmail import *  # noqa: F403

__version__ = _warpmail.__version__
__all__ = [name for name in dir(_warpmail) if not name.startswith("_")]

# No arbiter outlives the interpreter, whatever is still in the mailboxes.
_atexit.register(_warpmail._stop_all)
