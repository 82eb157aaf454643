# The environment (which slot, how many attempts) lies twice on the disk, outside of any file system: a power cut while one copy is
# written leaves the other.
FILESEXTRAPATHS:prepend:wardgateos := "${THISDIR}/files:"
SRC_URI:append:rpi = " file://wardgate-environment.cfg"
