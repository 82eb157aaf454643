SUMMARY = "An update of the whole box"
DESCRIPTION = "A signed RAUC bundle with the root file system; installed into the slot that does not run."
SECTION = "base"
LICENSE = "Apache-2.0"

SRC_URI = ""

inherit bundle

RAUC_BUNDLE_COMPATIBLE = "wardgate-${MACHINE}"
RAUC_BUNDLE_VERSION = "${DISTRO_VERSION}"
RAUC_BUNDLE_FORMAT = "verity"
RAUC_BUNDLE_SLOTS = "rootfs"
RAUC_SLOT_rootfs = "wardgate-image"
RAUC_SLOT_rootfs[fstype] = "ext4"
RAUC_SLOT_rootfs[adaptive] = "block-hash-index"
# RAUC_KEY_FILE and RAUC_CERT_FILE come from outside: yocto/README.md, "Keys".
