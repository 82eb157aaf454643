#!/bin/bash
# Runs a program with a journal of its own behind it, in a mount namespace (`unshare --mount --pid --fork --mount-proc`), until the
# journal has an entry with this field; then shows all that the journal has of it.    journal.sh FIELD=VALUE PROGRAM ARGUMENT...
set -euo pipefail
awaited=$1
shift
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd /run/log/journal
/usr/lib/systemd/systemd-journald 2>/dev/null &
for _ in $(seq 200); do
    if [ -S /run/systemd/journal/stdout ] && [ -S /run/systemd/journal/socket ]; then break; fi
    sleep 0.05
done
# The shell becomes the program; systemd would say the same of the stream.
systemd-cat -t wardgate sh -c 'JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec "$@"' sh "$@" &
program=$!
for _ in $(seq 400); do
    if [ -n "$(journalctl --quiet --no-pager "$awaited" 2>/dev/null)" ]; then break; fi
    sleep 0.1
done
kill -TERM $program
wait $program || true
journalctl --quiet --no-pager --output=json _COMM=wardgate
