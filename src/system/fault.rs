//! Faults of connections in words, with what to do: for status pages and logs, never for decisions.

use std::io;

use rustls::{AlertDescription, CertificateError, Error as TlsFault};

/// A fault of a connection in words. Over TLS 1.3 a server's refusal of our certificate arrives with the first read, after
/// [`super::stream::dial`] was content: the reader should tell it by this.
pub fn in_words(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsFault>()) {
        Some(fault) => tls_in_words(fault),
        None => match error.kind() {
            io::ErrorKind::UnexpectedEof => "the peer closed the connection in the middle".to_owned(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "the peer closed the connection".to_owned(),
            io::ErrorKind::TimedOut => "the peer is silent: is the cable in, is the peer up?".to_owned(),
            _ => error.to_string(),
        },
    }
}

fn tls_in_words(fault: &TlsFault) -> String {
    match fault {
        TlsFault::InvalidCertificate(error) => certificate_in_words(error),
        TlsFault::AlertReceived(alert) => alert_in_words(*alert),
        TlsFault::InvalidMessage(_) => "the peer does not speak TLS: check the port, or leave tls out".to_owned(),
        TlsFault::PeerIncompatible(error) => {
            format!("no common version or cipher ({error:?}): the peer needs TLS 1.2 or 1.3")
        }
        TlsFault::NoCertificatesPresented => {
            "the peer showed no certificate: give it one of the configured CA".to_owned()
        }
        other => other.to_string(),
    }
}

fn certificate_in_words(error: &CertificateError) -> String {
    use CertificateError as E;
    match error {
        E::Expired | E::ExpiredContext { .. } => {
            "the peer's certificate has expired: renew it there (or this box's clock is ahead)".to_owned()
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "the peer's certificate is not yet valid: this box's clock is behind; set it, or check its time server"
                .to_owned()
        }
        E::UnknownIssuer => {
            "the peer's certificate is not from a CA that is trusted here: put its CA certificate into the ca file"
                .to_owned()
        }
        // Seen when a hospital renews its CA under the old name.
        E::BadSignature => {
            "the peer's certificate is from another CA of the same name as the one that is trusted here: put \
                            its CA certificate into the ca file beside the old one"
                .to_owned()
        }
        E::NotValidForNameContext { expected, presented } => format!(
            "the peer's certificate is not for {} but for {}: correct the address, or set server-name",
            expected.to_str(),
            if presented.is_empty() { "no name at all".to_owned() } else { presented.join(", ") }
        ),
        E::NotValidForName => {
            "the peer's certificate is for another name: correct the address, or set server-name".to_owned()
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "the peer's certificate is not for this side of TLS (extended key usage): issue it anew".to_owned()
        }
        E::Revoked => "the peer's certificate was revoked: renew it there".to_owned(),
        other => format!("the peer's certificate can't be accepted: {other}"),
    }
}

fn alert_in_words(alert: AlertDescription) -> String {
    use AlertDescription as A;
    match alert {
        A::CertificateRequired => {
            "the peer wants a certificate of this box: set certificate and key (mutual TLS)".to_owned()
        }
        A::UnknownCA => "the peer does not trust the CA of this box's certificate: add the CA there".to_owned(),
        A::CertificateExpired => "the peer says that this box's certificate has expired: renew it".to_owned(),
        A::BadCertificate
        | A::CertificateUnknown
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::AccessDenied => {
            format!("the peer refused this box's certificate ({alert:?}): check which ones it lets in")
        }
        A::HandshakeFailure | A::ProtocolVersion | A::InsufficientSecurity => {
            format!(
                "the peer found no common version or cipher ({alert:?}): it needs TLS 1.2 or 1.3; or it wants a certificate"
            )
        }
        other => format!("the peer ended TLS with the alert {other:?}"),
    }
}
