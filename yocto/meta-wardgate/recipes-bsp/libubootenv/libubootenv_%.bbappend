# Where fw_printenv and RAUC find the boot loader's environment: the same two places as in u-boot's configuration.
FILESEXTRAPATHS:prepend:wardgateos := "${THISDIR}/files:"
SRC_URI:append:wardgateos = " file://fw_env.config"
PACKAGE_ARCH:class-target:wardgateos = "${MACHINE_ARCH}"

do_install:append:class-target:wardgateos() {
    install -d ${D}${sysconfdir}
    sed -e 's,@DISK@,${WARDGATE_DISK},g' ${UNPACKDIR}/fw_env.config > ${D}${sysconfdir}/fw_env.config
    chmod 0644 ${D}${sysconfdir}/fw_env.config
}
