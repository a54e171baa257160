"""Work in processes of their own, forked so that torch and transformers are loaded once."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable

from accelerate.state import AcceleratorState


def start(work: Callable[[], None]) -> int:
    """Runs ``work`` in a process of its own and returns its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def finish(child: int) -> int:
    """Waits for a process; returns its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_alone(work: Callable[[], None]) -> int:
    """Runs ``work`` in a process of its own to its end; returns its exit status."""
    return finish(start(work))


def run_together(work: Callable[[int], None], count: int = 2) -> list[int]:
    """Runs ``work(rank)`` in processes as a launcher would start them; returns their statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def join(rank: int) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ |= {"WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        work(rank)

    return [finish(child) for child in [start(lambda r=r: join(r)) for r in range(count)]]
