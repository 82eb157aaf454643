# Which slots there are, and whose bundles are taken: the certificate comes from outside (RAUC_KEYRING_URI, yocto/README.md).
FILESEXTRAPATHS:prepend:wardgateos := "${THISDIR}/files:"

do_install:prepend:wardgateos() {
    sed -i -e 's,@MACHINE@,${MACHINE},g' -e 's,@PARTITION@,${WARDGATE_PARTITION},g' \
        -e 's,@BOOTLOADER@,${WARDGATE_RAUC_BOOTLOADER},g' ${UNPACKDIR}/system.conf
}
PACKAGE_ARCH:wardgateos = "${MACHINE_ARCH}"
