# As recipes-bsp/u-boot/u-boot_%.bbappend, for the U-Boot of meta-freescale; the environment lies on the eMMC.
FILESEXTRAPATHS:prepend:wardgateos := "${THISDIR}/files:${THISDIR}/../../../../recipes-bsp/u-boot/files:"
SRC_URI:append:wardgateos = " file://wardgate-environment.cfg file://wardgate-emmc.cfg"
