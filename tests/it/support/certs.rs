//! Certificates made for one test: a CA, and what it issued. Valid for `localhost` and 127.0.0.1.
//!
//! Keys live in the test's own temporary folder and nowhere else.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// A certificate authority of a test.
pub struct Authority {
    folder: PathBuf,
    /// The CA's certificate, PEM.
    pub certificate: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate (PEM, without its CA) and its private key (PEM, PKCS #8).
pub struct Issued {
    /// The certificate's file.
    pub certificate: PathBuf,
    /// The key's file.
    pub key: PathBuf,
}

impl Authority {
    /// Makes a CA whose files are in `folder`, named after `name`.
    pub fn new(folder: &Path, name: &str) -> Self {
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let certificate = folder.join(format!("{name}.pem"));
        fs::write(&certificate, issuer.pem()).unwrap();
        Self { folder: folder.to_owned(), certificate, issuer }
    }

    /// A server's certificate for `localhost` and 127.0.0.1.
    pub fn server(&self, name: &str) -> Issued {
        self.issue(name, params_for(name, ExtendedKeyUsagePurpose::ServerAuth))
    }

    /// A client's certificate with `name` as its common name.
    pub fn client(&self, name: &str) -> Issued {
        self.issue(name, params_for(name, ExtendedKeyUsagePurpose::ClientAuth))
    }

    /// A server's certificate that ended in 2020.
    pub fn expired_server(&self, name: &str) -> Issued {
        let mut params = params_for(name, ExtendedKeyUsagePurpose::ServerAuth);
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
        self.issue(name, params)
    }

    /// A server's certificate for another host than the one that the tests connect to.
    pub fn server_elsewhere(&self, name: &str) -> Issued {
        let mut params = named(name);
        params.subject_alt_names = CertificateParams::new(["elsewhere.example".to_owned()]).unwrap().subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(name, params)
    }

    fn issue(&self, name: &str, params: CertificateParams) -> Issued {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = Issued {
            certificate: self.folder.join(format!("{name}.pem")),
            key: self.folder.join(format!("{name}.key")),
        };
        fs::write(&files.certificate, certificate.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn params_for(name: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    params
}

#[test]
fn openssl_accepts_what_the_authority_issued_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let other = Authority::new(folder.path(), "other");
    let server = ours.server("server").certificate;
    let accepts = |authority: &Authority, certificate: &Path| {
        let mut openssl = std::process::Command::new("openssl");
        openssl.arg("verify").arg("-CAfile").arg(&authority.certificate).arg(certificate);
        super::process::run(&mut openssl).status.success()
    };
    assert!(accepts(&ours, &server));
    assert!(!accepts(&other, &server));
    assert!(accepts(&ours, &ours.client("client").certificate));
    assert!(accepts(&ours, &ours.server_elsewhere("elsewhere").certificate));
    assert!(!accepts(&ours, &ours.expired_server("expired").certificate));
}
