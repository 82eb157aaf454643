SUMMARY = "Folders on /data, and the check that keeps an update"
DESCRIPTION = "Makes the folders that are bound from /data, puts the first configuration there, asks wardgate for \
               its health before RAUC marks a new system as good, and restarts a box that is not well with it."
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"
SRC_URI = "file://wardgate-data.service \
           file://wardgate-health.service \
           file://wardgate-restart.service \
           file://wardgate-restart.timer \
           file://trial \
           file://data.conf \
           file://gateway.toml \
"
S = "${UNPACKDIR}"

inherit allarch systemd

SYSTEMD_SERVICE:${PN} = "wardgate-health.service wardgate-data.service wardgate-restart.service \
                         wardgate-restart.timer"

do_install() {
    install -d ${D}${systemd_system_unitdir} ${D}${nonarch_libdir}/wardgate ${D}${datadir}/wardgate-box ${D}${sysconfdir}/wardgate
    install -d ${D}${localstatedir}/lib/wardgate ${D}${localstatedir}/lib/wardgate-keys
    install -m 0644 ${UNPACKDIR}/wardgate-data.service ${UNPACKDIR}/wardgate-health.service \
        ${UNPACKDIR}/wardgate-restart.service ${UNPACKDIR}/wardgate-restart.timer ${D}${systemd_system_unitdir}
    install -m 0755 ${UNPACKDIR}/trial ${D}${nonarch_libdir}/wardgate
    install -m 0644 ${UNPACKDIR}/data.conf ${D}${nonarch_libdir}/wardgate
    install -m 0644 ${UNPACKDIR}/gateway.toml ${D}${datadir}/wardgate-box/gateway.toml
}

FILES:${PN} += "${nonarch_libdir}/wardgate"
RDEPENDS:${PN} = "libubootenv-bin rauc wardgate"
