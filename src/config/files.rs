//! The files that sections name: where they are, and what is in them, as a digest.
//!
//! A renewed certificate under the same name must count as a changed section. Contents are hashed and forgotten.

use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};

use crate::system::credentials;
use crate::values::{SecretRef, Section};

/// Makes relative paths whole and returns the digest of all files that the section names.
pub fn settle(section: &mut impl Section, folder: &Path) -> [u8; 32] {
    let mut digest = Context::new(&SHA256);
    section.files(&mut |file| {
        if let SecretRef::File(path) = file {
            *path = folder.join(&path);
        }
        digest.update(file.to_string().as_bytes());
        match credentials::read(file) {
            Ok(content) => {
                // The length keeps the end of one file from being taken for the beginning of the next.
                digest.update(&content.len().to_be_bytes());
                digest.update(&content);
            }
            Err(_) => digest.update(b"not there"),
        }
    });
    sha256(digest)
}

/// SHA-256 of a text.
pub fn digest(text: &str) -> [u8; 32] {
    let mut digest = Context::new(&SHA256);
    digest.update(text.as_bytes());
    sha256(digest)
}

fn sha256(context: Context) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}
