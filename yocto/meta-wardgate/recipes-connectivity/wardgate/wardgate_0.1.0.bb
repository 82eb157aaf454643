SUMMARY = "Durable gateway for hospital devices"
DESCRIPTION = "Takes HL7 v2, DICOM and device telemetry in a hospital department, keeps it durably and \
               encrypted, and forwards it upstream. What it has acknowledged reaches every upstream that it is routed to, \
               or a person sees why not."
SECTION = "net"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"
CVE_PRODUCT = "wardgate"

# The crates, from Cargo.lock: yocto/crates writes the list, a test holds it.
require ${BPN}-crates.inc

inherit cargo cargo-update-recipe-crates externalsrc systemd useradd

# The tree that the layer stands in; nothing is written into it.
EXTERNALSRC := "${@os.path.realpath('${THISDIR}/../../../..')}"
EXTERNALSRC_SYMLINKS = ""

# The executable alone: no benchmarks, no library.
CARGO_BUILD_FLAGS:append = " --bin wardgate"

USERADD_PACKAGES = "${PN}"
USERADD_PARAM:${PN} = "--system --uid 782 --gid wardgate --home-dir ${localstatedir}/lib/wardgate --no-create-home \
                       --shell ${base_sbindir}/nologin --comment 'wardgate gateway' wardgate"
GROUPADD_PARAM:${PN} = "--system --gid 782 wardgate; --system --gid 783 wardgate-serial"

SYSTEMD_PACKAGES = "${PN}"
SYSTEMD_SERVICE:${PN} = "wardgate.service wardgate-key.service wardgate-tpm.service wardgate-failed.service \
                         wardgate-dicom.socket wardgate-mllp.socket wardgate-mqtt.socket wardgate-mqtts.socket"
# The preset decides: the service is enabled and no socket is, for nothing is open that the configuration does not name.
SYSTEMD_AUTO_ENABLE:${PN} = "disable"

do_install:append() {
    install -d ${D}${systemd_system_unitdir} ${D}${systemd_unitdir}/system-preset
    install -m 0644 ${S}/systemd/wardgate.service ${S}/systemd/wardgate-key.service ${S}/systemd/wardgate-tpm.service \
        ${S}/systemd/wardgate-failed.service ${S}/systemd/wardgate-dicom.socket ${S}/systemd/wardgate-mllp.socket ${S}/systemd/wardgate-mqtt.socket \
        ${S}/systemd/wardgate-mqtts.socket ${D}${systemd_system_unitdir}
    install -m 0644 ${S}/systemd/system-preset/80-wardgate.preset ${D}${systemd_unitdir}/system-preset

    install -d ${D}${nonarch_libdir}/wardgate ${D}${nonarch_libdir}/sysusers.d ${D}${nonarch_libdir}/tmpfiles.d \
        ${D}${nonarch_libdir}/systemd/journald.conf.d
    install -m 0755 ${S}/systemd/close-ports ${S}/systemd/make-key ${S}/systemd/wait-for-tpm ${S}/systemd/report-failure \
        ${D}${nonarch_libdir}/wardgate
    install -m 0644 ${S}/systemd/sysusers.d/wardgate.conf ${D}${nonarch_libdir}/sysusers.d
    install -m 0644 ${S}/systemd/tmpfiles.d/wardgate.conf ${D}${nonarch_libdir}/tmpfiles.d
    install -m 0644 ${S}/systemd/journald.conf.d/10-wardgate.conf ${D}${nonarch_libdir}/systemd/journald.conf.d

    install -d ${D}${datadir}/wardgate/profiles ${D}${datadir}/wardgate/systemd/examples
    install -m 0644 ${S}/config/gateway.toml ${S}/config/minimal.toml ${S}/config/record.schema.json ${D}${datadir}/wardgate
    install -m 0644 ${S}/config/profiles/*.toml ${D}${datadir}/wardgate/profiles
    install -m 0644 ${S}/systemd/examples/* ${D}${datadir}/wardgate/systemd/examples
}

FILES:${PN} += "${nonarch_libdir} ${systemd_unitdir}"

# systemd-creds opens and seals the root key.
RDEPENDS:${PN} += "systemd-extra-utils"
RRECOMMENDS:${PN} += "libtss2 libtss2-tcti-device tzdata"
