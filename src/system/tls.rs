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
    /// Reads the files and makes the acceptor. With `client-ca`, clients without a certificate of it are turned away.
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
        self.client_ca.is_some()
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
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
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
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use rustls::pki_types::UnixTime;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::system::fault;
    use crate::system::stream::{DialError, Stream, accept, dial};
    use crate::system::test_pki::Pki;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A box whose wall clock stands at five seconds after midnight of 1970-01-01.
    #[derive(Debug)]
    struct In1970 {
        raised: bool,
    }

    impl TimeProvider for In1970 {
        fn current_time(&self) -> Option<UnixTime> {
            let system = UNIX_EPOCH + Duration::from_secs(5);
            let time = if self.raised { clock::trusted_when(system) } else { system };
            time.duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
        }
    }

    fn client(pki: &Pki) -> ClientTls {
        ClientTls { ca: pki.ca(), certificate: None, key: None, server_name: None }
    }

    fn server(pki: &Pki, hosts: &[&str], years: (i32, i32)) -> ServerTls {
        let (certificate, key) = pki.leaf_valid("server", hosts, years);
        ServerTls { certificate, key, client_ca: None }
    }

    /// Accepts one connection and echoes one word; returns whom the client's certificate named, or why it was turned away.
    async fn echo(acceptor: TlsAcceptor) -> (HostPort, JoinHandle<Result<Option<String>, String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = HostPort { host: "localhost".into(), port: listener.local_addr().unwrap().port() };
        let task = tokio::spawn(async move {
            let (tcp, peer) = listener.accept().await.unwrap();
            let mut stream = accept(tcp, peer, Some(&acceptor), LIMIT).await?;
            let mut word = [0; 5];
            stream.read_exact(&mut word).await.map_err(|error| error.to_string())?;
            stream.write_all(&word).await.unwrap();
            stream.shutdown().await.unwrap();
            Ok(stream.peer_subject())
        });
        (address, task)
    }

    async fn say_hello(mut stream: Stream) -> std::io::Result<[u8; 5]> {
        stream.write_all(b"hello").await?;
        let mut word = [0; 5];
        stream.read_exact(&mut word).await.map(|_| word)
    }

    async fn meet(server: &ServerTls, client: &Connector) -> Result<(), DialError> {
        let (address, _task) = echo(server.acceptor().unwrap()).await;
        let stream = dial(&address, Some(client), LIMIT).await?;
        assert_eq!(&say_hello(stream).await.unwrap(), b"hello");
        Ok(())
    }

    async fn refusal(server: &ServerTls, client: &Connector) -> String {
        meet(server, client).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn both_ends_of_mutual_tls_know_each_other_by_name() {
        let pki = Pki::new();
        let mut server = server(&pki, &["localhost"], (2000, 4000));
        server.client_ca = Some(pki.ca());
        let (certificate, key) = pki.leaf("icu-3-east", &["icu-3-east"]);
        let client = ClientTls { certificate: Some(certificate), key: Some(key), ..client(&pki) };
        let (address, task) = echo(server.acceptor_for(&["mqtt"]).unwrap()).await;
        let stream = dial(&address, Some(&client.connector_for(&["mqtt"]).unwrap()), LIMIT).await.unwrap();
        assert_eq!(stream.peer_subject().as_deref(), Some("CN=server"));
        assert_eq!(stream.alpn(), Some(&b"mqtt"[..]));
        assert!(stream.is_tls());
        assert_eq!(&say_hello(stream).await.unwrap(), b"hello");
        assert_eq!(task.await.unwrap().unwrap().as_deref(), Some("CN=icu-3-east"));
    }

    #[tokio::test]
    async fn a_client_without_a_certificate_is_turned_away_and_both_are_told_why() {
        let pki = Pki::new();
        let mut server = server(&pki, &["localhost"], (2000, 4000));
        server.client_ca = Some(pki.ca());
        let (address, task) = echo(server.acceptor().unwrap()).await;
        // TLS 1.3: the client's handshake is over before the server has looked for the certificate.
        let stream = dial(&address, Some(&client(&pki).connector().unwrap()), LIMIT).await.unwrap();
        let error = say_hello(stream).await.unwrap_err();
        let words = fault::in_words(&error);
        assert_eq!(words, "the peer wants a certificate of this box: set certificate and key (mutual TLS)");
        let words = task.await.unwrap().unwrap_err();
        assert_eq!(words, "the peer showed no certificate: give it one of the configured CA");
    }

    #[tokio::test]
    async fn a_client_of_another_ca_is_turned_away() {
        let (pki, stranger) = (Pki::new(), Pki::new());
        let mut server = server(&pki, &["localhost"], (2000, 4000));
        server.client_ca = Some(pki.ca());
        let (certificate, key) = stranger.leaf("stranger", &["stranger"]);
        let client = ClientTls { certificate: Some(certificate), key: Some(key), ..client(&pki) };
        let (address, task) = echo(server.acceptor().unwrap()).await;
        if let Ok(stream) = dial(&address, Some(&client.connector().unwrap()), LIMIT).await {
            say_hello(stream).await.unwrap_err();
        }
        assert!(task.await.unwrap().unwrap_err().contains("is not from a CA that is trusted here"));
    }

    #[tokio::test]
    async fn an_expired_certificate_is_refused() {
        let pki = Pki::new();
        let server = server(&pki, &["localhost"], (2020, 2021));
        let words = refusal(&server, &client(&pki).connector().unwrap()).await;
        assert!(
            words.ends_with("the peer's certificate has expired: renew it there (or this box's clock is ahead)"),
            "{words}"
        );
    }

    #[tokio::test]
    async fn a_clock_in_1970_does_not_cut_the_box_off() {
        let pki = Pki::new();
        let server = server(&pki, &["localhost"], (2026, 4000));
        let client = client(&pki);
        let raised = client.connector_at(&[], Arc::new(In1970 { raised: true })).unwrap();
        meet(&server, &raised).await.unwrap();
        // The floor is what made the difference: by the bare wall clock the same certificate lies in the future.
        let bare = client.connector_at(&[], Arc::new(In1970 { raised: false })).unwrap();
        assert!(refusal(&server, &bare).await.contains("is not yet valid: this box's clock is behind"));
    }

    #[tokio::test]
    async fn a_clock_in_1970_still_refuses_what_expired_before_the_build() {
        let pki = Pki::new();
        let server = server(&pki, &["localhost"], (2000, 2021));
        let raised = client(&pki).connector_at(&[], Arc::new(In1970 { raised: true })).unwrap();
        assert!(refusal(&server, &raised).await.contains("has expired"));
    }

    #[tokio::test]
    async fn a_certificate_for_another_name_is_refused_unless_that_name_is_configured() {
        let pki = Pki::new();
        let server = server(&pki, &["engine.example"], (2000, 4000));
        let mut client = client(&pki);
        let words = refusal(&server, &client.connector().unwrap()).await;
        assert!(words.contains("not for localhost but for"), "{words}");
        assert!(
            words.contains("engine.example") && words.ends_with("correct the address, or set server-name"),
            "{words}"
        );
        client.server_name = Some("engine.example".into());
        meet(&server, &client.connector().unwrap()).await.unwrap();
    }

    #[tokio::test]
    async fn a_server_of_another_ca_is_refused() {
        let (ours, theirs) = (Pki::new(), Pki::new());
        let strange = server(&theirs, &["localhost"], (2000, 4000));
        let words = refusal(&strange, &client(&ours).connector().unwrap()).await;
        assert!(words.ends_with("put its CA certificate into the ca file"), "{words}");
        // A CA that was made anew under the old name.
        let (before, after) = (Pki::named("hospital CA"), Pki::named("hospital CA"));
        let renewed = server(&after, &["localhost"], (2000, 4000));
        let words = refusal(&renewed, &client(&before).connector().unwrap()).await;
        assert!(words.ends_with("put its CA certificate into the ca file beside the old one"), "{words}");
    }

    fn problems(section: &impl Section) -> Vec<(String, bool)> {
        let mut problems = Problems::default();
        section.check(&mut problems);
        problems.into_found().into_iter().map(|p| (format!("{}: {}", p.path.join("."), p.text), p.warning)).collect()
    }

    #[test]
    fn a_check_names_each_bad_file_under_its_key() {
        let pki = Pki::new();
        let (certificate, _) = pki.leaf("box", &["localhost"]);
        let (_, other_key) = pki.leaf("other", &["localhost"]);
        let server =
            ServerTls { certificate: certificate.clone(), key: other_key, client_ca: Some(pki.file("gone.pem")) };
        let found = problems(&server);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].0.starts_with("certificate: the key in") && !found[0].1);
        assert!(found[1].0.starts_with("client-ca: file") && found[1].0.contains("is not there") && found[1].1);
        let half = ClientTls { certificate: Some(certificate), server_name: Some("a b".into()), ..client(&pki) };
        let found = problems(&half);
        assert!(found[0].0.starts_with("server-name: \"a b\" is not a server name"), "{found:?}");
        assert_eq!(found[1].0, "certificate: needs its private key beside it: add key = \"...\"");
        assert!(matches!(half.connector(), Err(TlsError::HalfIdentity)));
    }

    #[test]
    fn a_check_warns_of_an_expired_certificate_and_is_silent_when_all_is_well() {
        let pki = Pki::new();
        let found = problems(&server(&pki, &["localhost"], (2020, 2021)));
        assert_eq!(found.len(), 1);
        assert!(found[0].0.contains("the certificate of CN=server has expired") && found[0].1);
        assert_eq!(problems(&server(&pki, &["localhost"], (2000, 4000))), []);
        assert_eq!(problems(&client(&pki)), []);
    }

    #[test]
    fn every_file_is_visited() {
        let pki = Pki::new();
        let mut seen = Vec::new();
        let mut full = ClientTls { certificate: Some(pki.file("a")), key: Some(pki.file("b")), ..client(&pki) };
        full.files(&mut |file| seen.push(file.to_string()));
        let mut full = ServerTls { certificate: pki.file("c"), key: pki.file("d"), client_ca: Some(pki.file("e")) };
        full.files(&mut |file| seen.push(file.to_string()));
        assert_eq!(seen.len(), 6);
    }
}
