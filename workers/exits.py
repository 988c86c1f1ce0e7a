"""The worker process's exit codes."""

# EX_SOFTWARE of BSD's sysexits.h: the worker is to be started again
EXIT_ENGINE_DIED = 70
# the command line's own code for a service that is away
EXIT_UNAVAILABLE = 6
# the command line's own code for a wrong setting or card: another start would end the same
EXIT_REFUSED = 2
