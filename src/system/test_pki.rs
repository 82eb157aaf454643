//! A certificate authority for tests: real certificates in real files in a temporary folder.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

use crate::values::SecretRef;

/// A CA with its folder. The CA's certificate is `ca.pem`.
pub struct Pki {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Default for Pki {
    fn default() -> Self {
        Self::new()
    }
}

impl Pki {
    /// A new CA, with a name of its own.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("test CA {}", folder.path().display());
        Self::in_folder(folder, &name)
    }

    /// A new CA of this name.
    pub fn named(name: &str) -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), name)
    }

    /// A file in the CA's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same as it stands in a configuration.
    pub fn file(&self, name: &str) -> SecretRef {
        SecretRef::File(self.path(name))
    }

    /// The CA's own certificate.
    pub fn ca(&self) -> SecretRef {
        self.file("ca.pem")
    }

    /// Issues `<name>.pem` and `<name>.key` for these host names and addresses, valid for a long time.
    pub fn leaf(&self, name: &str, hosts: &[&str]) -> (SecretRef, SecretRef) {
        self.leaf_valid(name, hosts, (2000, 4000))
    }

    /// The same, valid from the first of January of one year to that of another.
    pub fn leaf_valid(&self, name: &str, hosts: &[&str], (from, until): (i32, i32)) -> (SecretRef, SecretRef) {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (certificate_file, key_file) = (format!("{name}.pem"), format!("{name}.key"));
        fs::write(self.path(&certificate_file), certificate.pem()).unwrap();
        fs::write(self.path(&key_file), key.serialize_pem()).unwrap();
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(self.path(&key_file), owner_only).unwrap();
        (self.file(&certificate_file), self.file(&key_file))
    }

    fn in_folder(folder: tempfile::TempDir, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        fs::write(folder.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }
}
