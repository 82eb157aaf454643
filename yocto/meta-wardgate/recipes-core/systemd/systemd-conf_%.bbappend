# The hardware watchdog restarts a box whose kernel or systemd hangs; the service has one of its own.
FILESEXTRAPATHS:prepend:wardgateos := "${THISDIR}/files:"
SRC_URI:append:wardgateos = " file://10-wardgate-watchdog.conf"

do_install:append:wardgateos() {
    install -D -m 0644 ${UNPACKDIR}/10-wardgate-watchdog.conf ${D}${systemd_unitdir}/system.conf.d/10-wardgate-watchdog.conf
}
