#!/bin/sh
# The whole story of an update, with the box's own boot script and its own `trial`; U-Boot's commands, its environment, RAUC and the
# power button are played here. What does not hold ends it with a sentence.
#   slots.sh FOLDER       FOLDER is empty
set -eu
here=$(cd "$(dirname "$0")/../../.." && pwd)/yocto/meta-wardgate
boot_script=$here/recipes-bsp/wardgate-boot/files/boot.cmd.in
trial=$here/recipes-core/wardgate-box/files/trial
folder=$1
environment=$folder/environment
mkdir "$environment" "$folder/bin" "$folder/data"

holds() { echo "holds: $1"; }
fail() { echo "NOT SO: $*" >&2; cat "$folder/said" >&2 2>/dev/null; exit 1; }
is() { [ "$2" = "$3" ] || fail "$1: $2, not $3"; holds "$1"; }

# --- what the system finds: the boot loader's environment, and a way to restart
cat >"$folder/bin/fw_printenv" <<PRINT
#!/bin/sh
cat "$environment/\$2"
PRINT
cat >"$folder/bin/fw_setenv" <<SET
#!/bin/sh
if [ -e "$folder/read-only" ]; then exit 1; fi
if [ \$# = 1 ]; then rm -f "$environment/\$1"; else echo "\$2" >"$environment/\$1"; fi
SET
cat >"$folder/bin/systemctl" <<RESTART
#!/bin/sh
echo "\$*" >"$folder/restart"
RESTART
echo 'echo "what was wrong"' >"$folder/bin/journalctl"
chmod +x "$folder"/bin/*

# has_limit NAME: the kernel is told a number of seconds.
has_limit() { grep -Eq "(^| )$1=[1-9][0-9]*( |\$)" "$folder/cmdline"; }

# What the kernel of slot `panics` does, and that of slot `rootless`, whose root never shows up: it starts the machine anew after a while
# if it was told to, else it stands still for good.
starts_anew() {
    if [ -e "$folder/stands-still" ]; then exit 0; fi
    if [ "$slot" = "$(cat "$folder/rootless" 2>/dev/null)" ]; then
        if has_limit rootwait && has_limit panic; then exit 1; fi
    elif [ "$slot" = "$(cat "$folder/panics" 2>/dev/null)" ]; then
        if has_limit panic; then exit 1; fi
    else
        exit 0
    fi
    touch "$folder/stands-still"
    exit 0
}

# --- what U-Boot does
start_machine() {
    (
        for file in "$environment"/*; do
            if [ -e "$file" ]; then eval "${file##*/}=\$(cat "$file")"; fi
        done
        setenv() {
            name=$1
            shift
            eval "$name=\$*"
        }
        setexpr() { eval "$1=$(($2 $3 $4))"; }
        uuid() { eval "$1=5f1d7a7c-0f8e-4b7f-9a3e-2d5b6c8d9e0f"; }
        saveenv() {
            if [ -e "$folder/forgets" ]; then return; fi
            for name in BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT machine_id; do eval "echo \$$name" >"$environment/$name"; done
        }
        load() { true; }
        booti() {
            echo "$bootargs" >"$folder/cmdline"
            starts_anew
        }
        reset() { exit 1; }
        # Its variables need not be set.
        set +u
        . "$boot_script" >/dev/null
    ) || start_machine
    slot=$(sed -n 's/.*rauc.slot=\([AB]\).*/\1/p' "$folder/cmdline")
}

# start HEALTH: one start; leaves the slot in $slot, and a file `restart` when the box restarts itself.
start() {
    rm -f "$folder/restart"
    start_machine
    if [ "$1" = well ]; then verdict=passed; else verdict=failed; fi
    status=0
    PATH=$folder/bin:$PATH WARDGATE_CMDLINE=$folder/cmdline WARDGATE_DATA=$folder/data "$trial" $verdict 2>>"$folder/said" || status=$?
    # RAUC marks the slot as good.
    if [ "$1" = well ]; then echo 3 >"$environment/BOOT_${slot}_LEFT"; fi
}

# run A-HEALTH B-HEALTH: starts until the box stays up; the slots that were started are then in $slots.
run() {
    slots=
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do
        start_machine_health "$1" "$2"
        slots=$slots$slot
        if [ ! -e "$folder/restart" ]; then return; fi
        is "a restart is asked of systemd" "$(cat "$folder/restart")" "--no-block reboot"
    done
    fail "it restarts for ever: $slots"
}

start_machine_health() {
    # Which slot comes is known only after the boot script: it is run once for that, and what it wrote is forgotten.
    cp -r "$environment" "$folder/before"
    start_machine
    rm -r "$environment"
    mv "$folder/before" "$environment"
    if [ "$slot" = A ]; then start "$1"; else start "$2"; fi
}

# install SLOT: as RAUC does it.
install() {
    if [ "$1" = A ]; then echo "A B"; else echo "B A"; fi >"$environment/BOOT_ORDER"
    echo 3 >"$environment/BOOT_$1_LEFT"
}

run sick sick
is "a box that was just flashed stays up, well or not" "$slots" A
run well sick
is "a well one too" "$slots" A
is "and its slot is known as good" "$(cat "$environment/wardgate_good")" A

install B
run well sick
is "a new system that is not well is tried three times, then the old one starts and stays" "$slots" BBBA
holds "what was wrong is kept over the restart"
grep -q "what was wrong" "$folder/data/trial-B.log" || fail "the journal of the trial is kept"
[ ! -e "$environment/wardgate_restarts" ] || fail "the count begins anew when the box is well"
run sick sick
is "an old system that is not well stays up" "$slots" A

install B
run well well
is "a new system that is well is kept" "$slots" B
run sick sick
is "and stays up when it is not well later" "$slots" B
for _ in 1 2 3 4 5; do start_machine_health sick sick; done
is "however often somebody switches it off and on" "$slot" B

install A
run sick well
is "the same the other way round" "$slots" AAAB

for fault in panics rootless; do
    install A
    echo A >"$folder/$fault"
    start well
    [ ! -e "$folder/stands-still" ] || fail "a system whose kernel is broken ($fault) stands still for good: $(cat "$folder/cmdline")"
    is "a new system whose kernel is broken ($fault) is left after three attempts" "$slot:$(cat "$environment/BOOT_A_LEFT")" B:0
    rm "$folder/$fault"
done

install A
touch "$folder/forgets"
echo "A B" >"$environment/BOOT_ORDER"
run sick sick
is "a boot loader that counts nothing does not make it restart for ever" "$slots" AAAA
rm "$folder/forgets"

install A
rm -f "$environment/wardgate_restarts"
touch "$folder/read-only"
start sick
[ ! -e "$folder/restart" ] || fail "a box that can't count its restarts restarts"
holds "a box that can't count its restarts makes none"

echo "quiet" >"$folder/cmdline"
for verdict in passed failed; do
    PATH=$folder/bin:$PATH WARDGATE_CMDLINE=$folder/cmdline WARDGATE_DATA=$folder/data "$trial" $verdict || fail "without slots it ends well"
done
[ ! -e "$folder/restart" ] || fail "a box without slots restarts"
echo "holds: all of it"
