#!/bin/bash
# Installs, starts, upgrades, removes and purges the Debian package on a copy of this system that is gone afterwards: an overlay in a
# mount namespace of its own (started by `unshare --mount --pid --fork`). What does not hold ends it with a sentence.
#   package.sh PACKAGE FOLDER       FOLDER is empty and on a file system that may carry an overlay
set -euo pipefail
package=$(realpath "$1")
folder=$(realpath "$2")
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

fail() { echo "NOT SO: $*" >&2; exit 1; }
holds() { local what=$1; shift; "$@" >/dev/null 2>&1 || fail "$what ($*)"; echo "holds: $what"; }
never() { local what=$1; shift; ! "$@" >/dev/null 2>&1 || fail "$what ($*)"; echo "holds: $what"; }

# --- a copy of this system that costs nothing
mount --make-rprivate /
mount -t tmpfs -o size=1g tmpfs "$folder"
mkdir "$folder"/{upper,work,system,kit}
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$folder/system"
system=$folder/system
mount -t proc proc "$system/proc"
mount --rbind /dev "$system/dev"
mount -t tmpfs tmpfs "$system/run"
mkdir "$system/kit"
mount --bind "$folder/kit" "$system/kit"
cp "$package" "$folder/kit/wardgate.deb"
inside() { chroot "$system" "$@"; }

install() { inside dpkg --force-confdef --force-confold -i "$1" >"$folder/kit/log" 2>&1 || { cat "$folder/kit/log"; fail "$1 is installed"; }; }
user_of() { inside stat -c %U:%G:%a "$1"; }

# --- installed
inside dpkg --purge wardgate >/dev/null 2>&1 || true
install /kit/wardgate.deb
holds "the executable is there and runs" inside wardgate --version
holds "its files are as they were packed" inside sh -c '[ -z "$(dpkg --verify wardgate)" ]'
[ "$(inside id -u wardgate):$(inside id -g wardgate)" = 782:782 ] || fail "the user has the number that the data partition knows"
[ "$(user_of /var/lib/wardgate)" = wardgate:wardgate:700 ] || fail "the state is the service's alone"
[ "$(user_of /var/lib/wardgate-keys)" = root:root:700 ] || fail "the keys are root's alone"
holds "the service is enabled" test -L "$system/etc/systemd/system/multi-user.target.wants/wardgate.service"
never "no socket is enabled" sh -c "ls $system/etc/systemd/system/sockets.target.wants | grep wardgate"
holds "the configuration that is shipped passes its check" inside wardgate check /etc/wardgate/gateway.toml
holds "the examples load as well" inside sh -c 'cd /usr/share/wardgate && wardgate check minimal.toml'

# --- it fits to the systemd that is here, and to the next one
drop_in=$system/etc/systemd/system/wardgate.service.d/10-systemd-252.conf
with_systemd() { # VERSION, as the release of Debian that has it would bring it
    printf '#!/bin/sh\nif [ "$1" = --version ]; then echo "systemd %s (%s)"; fi\n' "$1" "$1" >"$system/usr/local/bin/systemctl"
    chmod 755 "$system/usr/local/bin/systemctl"
    inside dpkg-trigger --by-package=systemd /usr/lib/systemd/systemd
    inside dpkg --triggers-only wardgate >"$folder/kit/log" 2>&1 || { cat "$folder/kit/log"; fail "the trigger is taken"; }
    rm "$system/usr/local/bin/systemctl"
}
with_systemd 257
never "a new systemd is not told what an old one lacks" test -e "$drop_in"
with_systemd 252
holds "an old systemd reloads by a command" inside grep -q '^ExecReload=' /etc/systemd/system/wardgate.service.d/10-systemd-252.conf

# --- the key
holds "a key is made" inside /usr/lib/wardgate/make-key
cred=/var/lib/wardgate-keys/spool-key.cred
[ "$(user_of $cred)" = root:root:600 ] || fail "the sealed key is root's alone"
[ "$(inside systemd-creds decrypt --name=spool-key $cred - | wc -c)" = 32 ] || fail "the key has 32 bytes"
inside sha256sum $cred >"$folder/kit/sum"
holds "it is made once" inside /usr/lib/wardgate/make-key
holds "and stays the same" inside sha256sum -c /kit/sum

# --- it runs as its user, with the credential as systemd would hand it over
inside install -d -o wardgate -m 700 /run/wardgate /run/credential
inside sh -c "systemd-creds decrypt --name=spool-key $cred /run/credential/spool-key; chown wardgate /run/credential/spool-key"
inside env CREDENTIALS_DIRECTORY=/run/credential setpriv --reuid=wardgate --regid=wardgate --clear-groups --bounding-set=-all \
    --no-new-privs wardgate run >"$folder/kit/said" 2>&1 &
service=$!
for _ in $(seq 600); do
    if inside wardgate status >/dev/null 2>&1; then break; fi
    kill -0 $service 2>/dev/null || { cat "$folder/kit/said"; fail "the service runs"; }
    sleep 0.05
done
holds "the service runs without root and without rights" inside wardgate status
kill -TERM "$(inside pgrep -u wardgate -x wardgate)"
wait $service || fail "the service ends well"
holds "it kept its state" sh -c "[ -n \"\$(ls -A $system/var/lib/wardgate)\" ]"

inside mv $cred /kit/put-away
never "no new key is made for a spool that has one" inside /usr/lib/wardgate/make-key
inside mv /kit/put-away $cred

# --- upgraded: another version with another shipped configuration
echo '# ours' >>"$system/etc/wardgate/gateway.toml"
dpkg-deb -R "$package" "$folder/kit/next"
sed -i 's/^Version: .*/Version: 99/' "$folder/kit/next/DEBIAN/control"
echo '# theirs' >>"$folder/kit/next/etc/wardgate/gateway.toml"
dpkg-deb --root-owner-group -Znone -b "$folder/kit/next" "$folder/kit/next.deb" >/dev/null
inside systemctl disable wardgate.service >/dev/null 2>&1
install /kit/next.deb
holds "an upgrade keeps the configuration that was edited" grep -q '^# ours' "$system/etc/wardgate/gateway.toml"
never "and does not mix it" grep -q '^# theirs' "$system/etc/wardgate/gateway.toml"
holds "the key is the same" inside sha256sum -c /kit/sum
never "a service that was disabled stays disabled" test -L "$system/etc/systemd/system/multi-user.target.wants/wardgate.service"

# --- removed
inside dpkg --remove wardgate >"$folder/kit/log" 2>&1 || { cat "$folder/kit/log"; fail "it is removed"; }
holds "who removes it is told that messages stay" grep -q 'stay as they are' "$folder/kit/log"
never "its drop-in is gone" test -L "$drop_in"
never "the executable is gone" test -e "$system/usr/bin/wardgate"
holds "the configuration stays" grep -q '^# ours' "$system/etc/wardgate/gateway.toml"
holds "the spool stays" sh -c "[ -n \"\$(ls -A $system/var/lib/wardgate)\" ]"
holds "the key stays" inside sha256sum -c /kit/sum
install /kit/next.deb
holds "installed again it finds them" inside sha256sum -c /kit/sum

# --- purged
inside dpkg --purge wardgate >"$folder/kit/log" 2>&1 || { cat "$folder/kit/log"; fail "it is purged"; }
holds "who purges it is told what is destroyed" grep -q 'purge destroys' "$folder/kit/log"
# What the overlay holds now, but for what it only hides (a character device stands for a file that was deleted).
left=$(cd "$folder/upper" && find . -name '*wardgate*' ! -type c ! -path './kit*' ! -path './tmp/*')
[ -z "$left" ] || fail "nothing is left behind: $left"
never "the user is gone" inside getent passwd wardgate
never "its groups are gone" inside getent group wardgate-serial
echo "holds: nothing is left behind"
