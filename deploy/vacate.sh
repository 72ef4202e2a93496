#!/bin/sh
# Starts vacate as vacate.service does, where there is no systemd: as the "run" of a
# runit or s6 service, from an init script, or by hand. Arguments go to `vacate
# serve`. It becomes the daemon, which stays in the foreground and logs to standard
# error; whoever supervises it must send it no SIGKILL: that erases every lease.
set -eu
vacate=${VACATE:-/usr/bin/vacate}

try() { "$@" 2>/dev/null || echo "vacate.sh: not allowed: $*" >&2; }

umask 077
ulimit -c 0
try ulimit -l unlimited
try ulimit -n 262144
spare() { echo -1000 >/proc/self/oom_score_adj; }
try spare

if [ "$(id -u)" = 0 ]; then
	exec setpriv --no-new-privs --bounding-set -all,+chown,+ipc_lock,+setpcap,+sys_nice "$vacate" serve "$@"
fi
exec "$vacate" serve "$@"
