//! TLS with certificates on both sides, in and out.

use std::fs;

use super::route;
use crate::support::certs::{Authority, Issued};
use crate::support::gateway::Gateway;
use crate::support::mllp::message;
use crate::support::process::{Process, run};
use crate::support::tools::python_peer;
use crate::support::wait::eventually;

#[test]
fn devices_and_engines_speak_mutual_tls_and_strangers_stay_outside() {
    let (folder, outbox, store) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (devices, hospital) = (Authority::new(folder.path(), "devices"), Authority::new(folder.path(), "hospital"));
    let (listener, caller) = (hospital.server("box"), hospital.client("box-client"));
    let server = hospital.server("engine");
    let mut end = Process::start(
        python_peer("mllp_server.py")
            .arg("--store")
            .arg(store.path())
            .arg("--certificate")
            .arg(&server.certificate)
            .arg("--key")
            .arg(&server.key)
            .arg("--client-ca")
            .arg(&hospital.certificate),
    );
    let port = end.listening().port();
    // Paths are relative to the configuration file, as on a box.
    let config = format!(
        "[source.monitors.mllp]\nlisten = \"127.0.0.1:0\"\n\
         tls = {{ certificate = \"box.pem\", key = \"box.key\", client-ca = \"devices.pem\" }}\n\
         [upstream.engine.mllp]\naddress = \"localhost:{port}\"\n\
         tls = {{ ca = \"hospital.pem\", certificate = \"box-client.pem\", key = \"box-client.key\" }}\n{}",
        route("monitors", &["engine"])
    );
    assert!(listener.key.exists() && caller.key.exists());
    let gateway = Gateway::start(folder.path(), &config);
    fs::write(outbox.path().join("one.hl7"), message("1")).unwrap();
    let port = gateway.endpoint("monitors").port().to_string();
    let send_as = |who: &Issued| {
        let mut client = python_peer("mllp_client.py");
        client.args(["--port", &port]).arg("--folder").arg(outbox.path());
        client.arg("--ca").arg(&hospital.certificate);
        run(client.arg("--certificate").arg(&who.certificate).arg("--key").arg(&who.key))
    };
    let stranger = send_as(&hospital.client("stranger"));
    assert!(!stranger.status.success(), "{}", stranger.said);
    assert_eq!(gateway.status()["sources"]["monitors"]["received"], 0);
    let monitor = send_as(&devices.client("monitor"));
    assert!(monitor.status.success(), "{}", monitor.said);
    eventually("it arrived", || gateway.status()["upstreams"]["engine"]["delivered"] == 1);
    let order = fs::read_to_string(store.path().join("order")).unwrap();
    assert!(order.ends_with(" 1 AA\n"), "{order}");
    eventually("the stranger is counted", || gateway.status()["sources"]["monitors"]["turned-away"] == 1);
}
