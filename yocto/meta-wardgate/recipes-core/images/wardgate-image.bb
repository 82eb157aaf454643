SUMMARY = "The system of a wardgate box"
DESCRIPTION = "A read-only root with the service, updated as a whole by RAUC; all state lies on /data."
SECTION = "base"
LICENSE = "Apache-2.0"

inherit core-image

# Read-only, and no way in but what a site adds: no password, no shell over the network.
IMAGE_FEATURES += "read-only-rootfs"
IMAGE_LINGUAS = ""
IMAGE_INSTALL = "\
    packagegroup-core-boot \
    ca-certificates \
    e2fsprogs-e2fsck \
    kernel-devicetree \
    kernel-image \
    kernel-modules \
    libubootenv-bin \
    nftables \
    rauc \
    tpm2-tss \
    tzdata \
    wardgate \
    wardgate-box \
"

IMAGE_FSTYPES = "ext4 wic.zst wic.bmap"
WKS_FILE = "wardgate-ab.wks.in"
# Both slots have the size of the partition, so that every image fits both.
WARDGATE_ROOT_MB ?= "768"
IMAGE_ROOTFS_MAXSIZE = "${@int('${WARDGATE_ROOT_MB}') * 1024}"
# The rest of the flash stays free, which it uses to level its wear.
WARDGATE_DATA_MB ?= "3072"
