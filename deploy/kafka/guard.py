"""Runs a command, and ends it with SIGKILL when the process that asked for it is gone.

    python guard.py PARENT_PID COMMAND...

A file of its own, run by path with the standard library only, so that it starts in milliseconds. The guard and its
command are a process group of their own. SIGTERM is for the command: send it to the group, the guard ignores it, waits,
and hands on the exit code. SIGUSR1 is for the guard: it kills the command. So when the guard has ended, the command has
ended too, with its ports and file locks free again.

Two things end the command when its user is gone. The guard looks four times a second whether its parent is still
PARENT_PID; after that process died, however it died, the system has given the guard another parent. This works on every
Unix. Should the guard itself be killed, Linux ends the command through PR_SET_PDEATHSIG; elsewhere it would live on.

(PR_SET_PDEATHSIG alone, without a guard, would do it wrong: it fires when the *thread* that started the broker ends.)
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def _before_the_command() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # An ignored signal would stay ignored across exec.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Blocked ones stay blocked.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.25)
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # It would end the guard before there is a handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    # Started from the main thread, which lives as long as the guard, and before there is a second one.
    child = subprocess.Popen(command, preexec_fn=_before_the_command)  # noqa: PLW1509
    signal.signal(signal.SIGUSR1, lambda _number, _frame: child.kill())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
