//! Certificates and keys in PEM files: read, checked for what people get wrong, and what a certificate says of itself.
//!
//! Trust is not decided here but by webpki inside rustls. [`facts`] reads what is shown to people (subject, expiry); no
//! decision may rest on it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error as RustlsError, InconsistentKeys};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::system::credentials::{self, CredentialError};
use crate::values::SecretRef;

/// Certificates in one bundle: all public CAs are some 150.
const BUNDLE_CERTIFICATES_MAX: usize = 1000;

/// Why a TLS section can't be used. Names the file, what is wrong with it and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file or credential itself.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// Damaged PEM.
    #[error("{what} is not a whole PEM file ({cause}): copy it again, from -----BEGIN to -----END")]
    NotPem {
        /// The file.
        what: SecretRef,
        /// The parser's words.
        cause: String,
    },
    /// No certificate in it.
    #[error(
        "{0} holds no certificate: it must be in PEM form, with -----BEGIN CERTIFICATE-----; convert DER with \
         \"openssl x509 -inform der -in FILE -out FILE.pem\""
    )]
    NoCertificate(SecretRef),
    /// No key in it.
    #[error(
        "{0} holds no private key: it must be in PEM form, with -----BEGIN PRIVATE KEY----- and without a passphrase"
    )]
    NoKey(SecretRef),
    /// A certificate that can't be read.
    #[error("{what} holds a certificate that can't be used ({cause}): ask for it anew")]
    BadCertificate {
        /// The file.
        what: SecretRef,
        /// The library's words.
        cause: String,
    },
    /// A key that can't be used.
    #[error("{what} holds a key that can't be used ({cause}): make an ECDSA P-256 or RSA key of 2048 bits or more")]
    BadKey {
        /// The file.
        what: SecretRef,
        /// The library's words.
        cause: String,
    },
    /// Key and certificate are of different pairs.
    #[error("the key in {key} does not belong to the first certificate in {certificate}: use the two of one pair")]
    Mismatch {
        /// The certificate's file.
        certificate: SecretRef,
        /// The key's file.
        key: SecretRef,
    },
    /// Only one of certificate and key is given.
    #[error("certificate and key belong together: give both, or neither")]
    HalfIdentity,
    /// Not a name that a certificate can carry.
    #[error("\"{0}\" is not a server name: write a host name as in the server's certificate, or an IP address")]
    BadServerName(String),
    /// What the library refuses for other reasons.
    #[error("TLS can't be set up: {0}")]
    Setup(String),
}

/// What a certificate says of itself, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Whom it names: `CN=icu-3-east, O=St Mary's`.
    pub subject: String,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
}

/// Reads [`Facts`] from a certificate in DER; `None` when it can't be read.
pub fn facts(der: &[u8]) -> Option<Facts> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    Some(Facts {
        subject: certificate.subject().to_string(),
        not_before: moment(validity.not_before.timestamp()),
        not_after: moment(validity.not_after.timestamp()),
    })
}

/// The common name in a certificate in DER; `None` when it can't be read, or has not exactly one.
///
/// Of a certificate that was verified: who issues certificates decides whom they name.
pub fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    names.next().is_none().then_some(name)
}

/// The certificates in a PEM file, in its order: the own one first, then its issuers.
///
/// # Errors
/// [`TlsError`] when there is none or one is damaged.
pub fn chain(what: &SecretRef) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = credentials::read(what)?;
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(&bytes).take(BUNDLE_CERTIFICATES_MAX).collect();
    let certificates = certificates.map_err(|error| not_pem(what, &error))?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate(what.clone()));
    }
    Ok(certificates)
}

/// The private key in a PEM file: PKCS#8, PKCS#1 or SEC1, without a passphrase.
///
/// # Errors
/// [`TlsError`] when there is none or it is damaged.
pub fn private_key(what: &SecretRef) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = credentials::read(what)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey(what.clone()),
        other => not_pem(what, &other),
    })
}

/// A bundle of CA certificates, each of which is trusted from then on.
///
/// # Errors
/// [`TlsError`] when there is none or none is usable; single ones that can't be used are logged and left out, since the
/// bundles of all public CAs hold such.
pub fn roots(what: &SecretRef) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    let (added, ignored) = store.add_parsable_certificates(chain(what)?);
    if added == 0 {
        return Err(TlsError::BadCertificate { what: what.clone(), cause: "not a CA certificate".to_owned() });
    }
    if ignored > 0 {
        tracing::warn!(file = %what, ignored, "some CA certificates can't be read and are not trusted");
    }
    Ok(store)
}

/// The own certificate with its chain and key, known to belong together.
///
/// # Errors
/// [`TlsError`], above all [`TlsError::Mismatch`].
pub fn identity(
    certificate: &SecretRef,
    key: &SecretRef,
    provider: &CryptoProvider,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let (certificates, private) = (chain(certificate)?, private_key(key)?);
    match CertifiedKey::from_der(certificates.clone(), private.clone_key(), provider) {
        Ok(_) => Ok((certificates, private)),
        Err(RustlsError::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(TlsError::Mismatch { certificate: certificate.clone(), key: key.clone() })
        }
        Err(error @ RustlsError::InvalidCertificate(_)) => {
            Err(TlsError::BadCertificate { what: certificate.clone(), cause: error.to_string() })
        }
        Err(error) => Err(TlsError::BadKey { what: key.clone(), cause: error.to_string() }),
    }
}

fn not_pem(what: &SecretRef, error: &pem::Error) -> TlsError {
    let cause = match error {
        pem::Error::MissingSectionEnd { .. } => "the -----END line is missing".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a -----BEGIN line is damaged".to_owned(),
        other => other.to_string(),
    };
    TlsError::NotPem { what: what.clone(), cause }
}

fn moment(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let found = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    found.unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::system::test_pki::Pki;

    fn words<T>(result: Result<T, TlsError>) -> String {
        result.err().map(|error| error.to_string()).unwrap()
    }

    #[test]
    fn a_key_of_another_pair_is_named_with_both_files() {
        let pki = Pki::new();
        let (certificate, _) = pki.leaf("box", &["localhost"]);
        let (_, key) = pki.leaf("other", &["localhost"]);
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let said = words(identity(&certificate, &key, &provider));
        assert!(said.starts_with("the key in file") && said.contains("box.pem\": use the two of one pair"), "{said}");
    }

    #[test]
    fn what_people_put_into_the_wrong_place_is_recognised() {
        let pki = Pki::new();
        let (certificate, key) = pki.leaf("box", &["localhost"]);
        assert!(words(chain(&key)).contains("holds no certificate: it must be in PEM form"));
        assert!(words(private_key(&certificate)).contains("holds no private key"));
        let whole = fs::read(pki.path("box.pem")).unwrap();
        fs::write(pki.path("half.pem"), &whole[..whole.len() - 40]).unwrap();
        assert!(words(chain(&pki.file("half.pem"))).contains("the -----END line is missing): copy it again"));
        fs::write(pki.path("binary.der"), [0x30, 0x82, 1, 2]).unwrap();
        assert!(words(roots(&pki.file("binary.der"))).contains("convert DER with \"openssl x509"));
        fs::write(pki.path("empty.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(words(roots(&pki.file("empty.pem"))).contains("can't be used (not a CA certificate)"));
    }

    #[test]
    fn a_certificate_tells_whom_it_names_and_until_when() {
        let pki = Pki::new();
        let (certificate, _) = pki.leaf_valid("old", &["localhost"], (2020, 2021));
        let found = facts(&chain(&certificate).unwrap()[0]).unwrap();
        assert_eq!(found.subject, "CN=old");
        assert_eq!(common_name(&chain(&certificate).unwrap()[0]).as_deref(), Some("old"));
        assert_eq!(found.not_after, moment(1_609_459_200));
        assert_eq!(facts(b"nonsense"), None);
    }
}
