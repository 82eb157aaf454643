# Where things lie: a root that is never written, and /data with all that must last.
FILESEXTRAPATHS:prepend:wardgateos := "${THISDIR}/files:"

do_install:append:wardgateos() {
    install -d ${D}/data
    sed -i -e 's,@PARTITION@,${WARDGATE_PARTITION},g' ${D}${sysconfdir}/fstab
}
PACKAGE_ARCH:wardgateos = "${MACHINE_ARCH}"
FILES:${PN}:append:wardgateos = " /data"
