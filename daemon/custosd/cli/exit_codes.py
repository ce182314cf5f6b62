"""What the exit codes of custosd mean; scripts and service managers rely on them."""

OK = 0
"""Done; or, where something was checked, nothing is wrong."""

FAILURE = 1
"""It did not work; or, where something was checked, it is wrong."""

USAGE = 2
"""The command line makes no sense; or nothing could be checked at all (no such file)."""

NOT_RUNNING = 3
"""`status`: no daemon is running (as LSB has it)."""

STATUS_UNKNOWN = 4
"""`status`: whether a daemon is running could not be found out (as LSB has it)."""

UNAVAILABLE = 69
"""Something that is needed is not there, and waiting will not help (EX_UNAVAILABLE)."""

TEMPORARY = 75
"""Something that is needed is not there now; try again later (EX_TEMPFAIL)."""

NO_PERMISSION = 77
"""This user may not ask the daemon for it (EX_NOPERM)."""

BAD_CONFIG = 78
"""The configuration can not be used (EX_CONFIG); a restart would change nothing, so the
service's unit lists it in RestartPreventExitStatus=."""
