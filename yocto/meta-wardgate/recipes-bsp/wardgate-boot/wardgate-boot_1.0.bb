SUMMARY = "The boot script: which of the two systems is started"
DESCRIPTION = "A U-Boot script that counts the attempts of each slot, as RAUC expects it, and gives the box its machine id."
SECTION = "bootloaders"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"
DEPENDS = "u-boot-mkimage-native"
PROVIDES = "u-boot-default-script"
SRC_URI = "file://boot.cmd.in"
S = "${UNPACKDIR}"
PACKAGE_ARCH = "${MACHINE_ARCH}"

inherit deploy nopackages

do_compile() {
    sed -e 's#@UBOOT_DISK@#${WARDGATE_UBOOT_DISK}#g' -e 's#@PARTITION@#${WARDGATE_PARTITION}#g' \
        -e 's#@DEVICE_TREE@#${WARDGATE_DEVICE_TREE}#g' -e 's#@CONSOLE@#${WARDGATE_CONSOLE}#g' \
        ${UNPACKDIR}/boot.cmd.in > ${B}/boot.cmd
    uboot-mkimage -A arm64 -T script -C none -n "wardgate" -d ${B}/boot.cmd ${B}/boot.scr
}

do_install[noexec] = "1"

do_deploy() {
    install -m 0644 ${B}/boot.scr ${DEPLOYDIR}/boot.scr
}
addtask deploy after do_compile before do_build
