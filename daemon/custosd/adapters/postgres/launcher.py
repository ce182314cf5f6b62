"""Becomes a PostgreSQL program that ends when the process that started it ends.

Run as a script, never imported: `launcher.py PARENT SIGNAL IDENTITY PROGRAM ARGUMENT...`.
IDENTITY is `same`; `namespace`, root in a user namespace of its own where it is called
nobody (PostgreSQL refuses uid 0; the files stay root's); or `UID:GID` to become.
Exits with 97 where user namespaces are forbidden, with 98 when PARENT is gone already.
"""

import ctypes
import os
import sys
from pathlib import Path

_REFUSED = 97
_ORPHANED = 98
_NOBODY = 65534
_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1


def _enter_namespace(libc: ctypes.CDLL) -> None:
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{_NOBODY} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{_NOBODY} {gid} 1")


def _launch(parent: str, death_signal: str, identity: str, *command: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if identity == "namespace":
        try:
            _enter_namespace(libc)
        except OSError as error:
            sys.stderr.write(f"user namespaces are forbidden here: {error}\n")
            sys.exit(_REFUSED)
    elif identity != "same":
        uid, gid = map(int, identity.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # After the change of identity, which clears it; and the parent may have died before.
    libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit(_ORPHANED)
    os.execv(command[0], command)  # noqa: S606 - to become this program is the purpose


if __name__ == "__main__":
    _launch(*sys.argv[1:])
