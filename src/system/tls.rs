//! TLS as it is configured: the sections [`ClientTls`] and [`ServerTls`], and what is made of them.
//!
//! TLS 1.2 and 1.3 by rustls with aws-lc-rs, which is passed explicitly: nothing is installed for the whole process. Peers
//! are always verified by webpki; there is no switch to leave that out, and none may be added. The time by which
//! certificates are judged is [`clock::trusted`], so that a box whose clock starts in 1970 is not cut off. Sessions are not
//! resumed: connections live for hours here, and a resumed one would not look at certificates again.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, Error as RustlsError, ServerConfig, SupportedProtocolVersion};
use serde::Deserialize;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::system::certificate::{self, Facts};
use crate::system::clock::{self, TrustedTime};
use crate::system::credentials::{self, CredentialError};
use crate::values::{HostPort, Problems, SecretRef, Section};

pub use crate::system::certificate::TlsError;

/// The versions that are spoken; older ones are broken, newer ones do not exist.
const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// `tls = { ... }` of an upstream: whom to trust, and who we are.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ClientTls {
    /// The CA certificates that are trusted, in PEM: the hospital's own, as a rule. For a server with a public certificate
    /// the system's bundle: `/etc/ssl/certs/ca-certificates.crt`.
    pub ca: SecretRef,
    /// Our certificate with its chain, for mutual TLS; needs `key`.
    pub certificate: Option<SecretRef>,
    /// Its private key.
    pub key: Option<SecretRef>,
    /// The name that the server's certificate must carry, when it is not the host in `address`.
    pub server_name: Option<String>,
}

/// `tls = { ... }` of a listener: who we are, and whom to let in.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ServerTls {
    /// Our certificate with its chain, in PEM.
    pub certificate: SecretRef,
    /// Its private key.
    pub key: SecretRef,
    /// When given, a client must show a certificate of one of these CAs.
    pub client_ca: Option<SecretRef>,
    /// Whether it must, or may.
    #[serde(default)]
    pub client_certificate: ClientCertificate,
}

/// What is asked of clients when there is a `client-ca`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientCertificate {
    /// Who shows none is turned away.
    #[default]
    Required,
    /// Who shows none is let in; one that is shown must be good.
    Optional,
}

/// What dials TLS: made from a [`ClientTls`], used for any number of connections.
#[derive(Clone)]
pub struct Connector {
    inner: TlsConnector,
    server_name: Option<ServerName<'static>>,
}

impl Connector {
    /// tokio-rustls' own connector.
    pub fn inner(&self) -> &TlsConnector {
        &self.inner
    }

    /// The name that the certificate of the server at `address` must carry.
    ///
    /// # Errors
    /// [`TlsError::BadServerName`] when the host can't be a name in a certificate.
    pub fn server_name(&self, address: &HostPort) -> Result<ServerName<'static>, TlsError> {
        match &self.server_name {
            Some(name) => Ok(name.clone()),
            None => server_name(&address.host),
        }
    }
}

impl ClientTls {
    /// Reads the files and makes the connector.
    ///
    /// # Errors
    /// [`TlsError`] with the file, what is wrong with it and what to do.
    pub fn connector(&self) -> Result<Connector, TlsError> {
        self.connector_for(&[])
    }

    /// The same, and names the protocols above TLS (ALPN), the preferred one first.
    ///
    /// # Errors
    /// As [`Self::connector`].
    pub fn connector_for(&self, alpn: &[&str]) -> Result<Connector, TlsError> {
        self.connector_at(alpn, Arc::new(TrustedTime))
    }

    /// When our certificate expires; `None` when there is none or it can't be read.
    pub fn expires(&self) -> Option<SystemTime> {
        expiry(self.certificate.as_ref()?)
    }

    fn connector_at(&self, alpn: &[&str], time: Arc<dyn TimeProvider>) -> Result<Connector, TlsError> {
        let provider = provider();
        let roots = certificate::roots(&self.ca)?;
        let builder = ClientConfig::builder_with_details(Arc::clone(&provider), time);
        let builder = builder.with_protocol_versions(VERSIONS).map_err(setup)?.with_root_certificates(roots);
        let mut config = match (&self.certificate, &self.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(certificate), Some(key)) => {
                let (chain, key) = certificate::identity(certificate, key, &provider)?;
                builder.with_client_auth_cert(chain, key).map_err(setup)?
            }
            _ => return Err(TlsError::HalfIdentity),
        };
        config.resumption = Resumption::disabled();
        config.alpn_protocols = protocols(alpn);
        let server_name = self.server_name.as_deref().map(server_name).transpose()?;
        Ok(Connector { inner: TlsConnector::from(Arc::new(config)), server_name })
    }
}

impl ServerTls {
    /// Reads the files and makes the acceptor. With `client-ca`, clients without a certificate of it are turned away, unless it
    /// is optional; those with a bad one always.
    ///
    /// # Errors
    /// [`TlsError`] with the file, what is wrong with it and what to do.
    pub fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        self.acceptor_for(&[])
    }

    /// The same, and names the protocols above TLS (ALPN), the preferred one first.
    ///
    /// # Errors
    /// As [`Self::acceptor`].
    pub fn acceptor_for(&self, alpn: &[&str]) -> Result<TlsAcceptor, TlsError> {
        self.acceptor_at(alpn, Arc::new(TrustedTime))
    }

    /// Whether clients must show a certificate.
    pub fn is_mutual(&self) -> bool {
        self.client_ca.is_some() && self.client_certificate == ClientCertificate::Required
    }

    /// When our certificate expires; `None` when it can't be read.
    pub fn expires(&self) -> Option<SystemTime> {
        expiry(&self.certificate)
    }

    fn acceptor_at(&self, alpn: &[&str], time: Arc<dyn TimeProvider>) -> Result<TlsAcceptor, TlsError> {
        let provider = provider();
        let builder = ServerConfig::builder_with_details(Arc::clone(&provider), time);
        let builder = builder.with_protocol_versions(VERSIONS).map_err(setup)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let roots = Arc::new(certificate::roots(ca)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
                let verifier = match self.client_certificate {
                    ClientCertificate::Required => verifier.build(),
                    ClientCertificate::Optional => verifier.allow_unauthenticated().build(),
                };
                builder.with_client_cert_verifier(verifier.map_err(|error| TlsError::Setup(error.to_string()))?)
            }
        };
        let (chain, key) = certificate::identity(&self.certificate, &self.key, &provider)?;
        let mut config = builder.with_single_cert(chain, key).map_err(setup)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = protocols(alpn);
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl Section for ClientTls {
    fn check(&self, problems: &mut Problems) {
        if let Some(name) = &self.server_name
            && let Err(error) = server_name(name)
        {
            problems.error("server-name", error.to_string());
        }
        note(problems, "ca", certificate::roots(&self.ca));
        match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => check_identity(problems, certificate, key),
            (None, None) => {}
            (Some(_), None) => problems.error("certificate", "needs its private key beside it: add key = \"...\""),
            (None, Some(_)) => problems.error("key", "needs its certificate beside it: add certificate = \"...\""),
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        visit(&mut self.ca);
        self.certificate.iter_mut().for_each(&mut *visit);
        self.key.iter_mut().for_each(&mut *visit);
    }
}

impl Section for ServerTls {
    fn check(&self, problems: &mut Problems) {
        check_identity(problems, &self.certificate, &self.key);
        if let Some(ca) = &self.client_ca {
            note(problems, "client-ca", certificate::roots(ca));
        } else if self.client_certificate == ClientCertificate::Optional {
            problems.warn("client-certificate", "has no effect without a client-ca");
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        visit(&mut self.certificate);
        visit(&mut self.key);
        self.client_ca.iter_mut().for_each(visit);
    }
}

/// Certificate and key as far as they are at hand: a configuration is also checked on a desk that has neither.
fn check_identity(problems: &mut Problems, certificate: &SecretRef, key: &SecretRef) {
    let chain = note(problems, "certificate", certificate::chain(certificate));
    let readable_key = note(problems, "key", certificate::private_key(key)).is_some();
    if let Some(warning) = credentials::exposure(key) {
        problems.warn("key", warning);
    }
    let Some(chain) = chain else { return };
    if let Some(Facts { not_after, subject, .. }) = chain.first().and_then(|own| certificate::facts(own))
        && not_after < clock::trusted()
    {
        problems
            .warn("certificate", format!("the certificate of {subject} has expired: peers will refuse it; renew it"));
    }
    if readable_key {
        let key_of_pair = certificate::identity(certificate, key, &provider());
        note(problems, "certificate", key_of_pair);
    }
}

/// Notes what is wrong with a file; that it is not here (yet) is a warning only, since the box may have it.
fn note<T>(problems: &mut Problems, key: &str, outcome: Result<T, TlsError>) -> Option<T> {
    match outcome {
        Ok(value) => return Some(value),
        Err(TlsError::Credential(CredentialError::NoCredentials(_))) => {}
        Err(TlsError::Credential(error)) => problems.warn(key, error.to_string()),
        Err(error) => problems.error(key, error.to_string()),
    }
    None
}

fn server_name(host: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(host.to_owned()).map_err(|_| TlsError::BadServerName(host.to_owned()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn protocols(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect()
}

fn expiry(what: &SecretRef) -> Option<SystemTime> {
    let chain = certificate::chain(what).ok()?;
    certificate::facts(chain.first()?).map(|facts| facts.not_after)
}

fn setup(error: RustlsError) -> TlsError {
    TlsError::Setup(error.to_string())
}

#[cfg(test)]
mod tests;
