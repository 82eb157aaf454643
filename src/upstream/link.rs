//! What upstreams over TCP share: TLS or none, said aloud, and dialling in the forwarder's terms.

use std::time::Duration;

use super::SendError;
use crate::system::stream::{self, Stream};
use crate::system::tls::ClientTls;
use crate::values::{HostPort, Problems, SecretRef, Section};

/// Checks the keys `tls` and `plain` of a section: exactly one of them says how the connection is.
pub(super) fn check(problems: &mut Problems, tls: Option<&ClientTls>, plain: bool) {
    match (tls, plain) {
        (Some(tls), false) => problems.under("tls", |problems| tls.check(problems)),
        (None, true) => {}
        (Some(_), true) => problems.error("plain", "tls and plain = true contradict each other: remove one"),
        (None, false) => problems.error(
            "",
            "the messages would go unencrypted: add tls = { ca = \"...\" }, or say plain = true if the network is trusted",
        ),
    }
}

/// Visits the files of the key `tls`.
pub(super) fn files(tls: Option<&mut ClientTls>, visit: &mut dyn FnMut(&mut SecretRef)) {
    if let Some(tls) = tls {
        tls.files(visit);
    }
}

/// Connects within `limit`. Certificates are read anew each time, so renewed ones are used from the next connection on.
pub(super) async fn dial(
    address: &HostPort,
    tls: Option<&ClientTls>,
    alpn: &[&str],
    limit: Duration,
) -> Result<Stream, SendError> {
    let connector = tls.map(|tls| tls.connector_for(alpn)).transpose().map_err(|error| lost(error.to_string()))?;
    stream::dial(address, connector.as_ref(), limit).await.map_err(|error| lost(error.to_string()))
}

/// The connection's fault.
pub(super) fn lost(cause: impl Into<String>) -> SendError {
    SendError::Disconnected { cause: cause.into() }
}
