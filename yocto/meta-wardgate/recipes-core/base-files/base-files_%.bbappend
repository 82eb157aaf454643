# Where things lie: a root that is never written, and /data with all that must last.
FILESEXTRAPATHS:prepend:wardgateos := "${THISDIR}/files:"

do_install:append:wardgateos() {
    install -d ${D}/data
}
FILES:${PN}:append:wardgateos = " /data"
