//! By what people find messages: keyed hashes of the patient's number and of the order's, kept with the message.
//!
//! HMAC-SHA-256 under a key that comes of the root key and the spool's id, cut to eight bytes. They stand in sealed records only;
//! so even who has the disk's key must know a number to look for it, and no number is ever on disk beside the message itself.

use aws_lc_rs::hmac;

use super::Spool;
use super::seal::Secret;
use crate::envelope::{Identifier, Token};

/// Makes tokens.
pub struct Tokens {
    key: hmac::Key,
}

impl Tokens {
    /// `secret` keys the hashes.
    pub fn new(secret: &Secret) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, secret.bytes()) }
    }

    /// The token of a value, byte for byte as it is.
    pub fn of(&self, identifier: Identifier, value: &[u8]) -> Token {
        let label: &[u8] = match identifier {
            Identifier::PatientId => b"patient-id\0",
            Identifier::AccessionNumber => b"accession-number\0",
        };
        let mut context = hmac::Context::with_key(&self.key);
        context.update(label);
        context.update(value);
        Token(context.sign().as_ref().first_chunk().copied().unwrap_or_default())
    }
}

impl Spool {
    /// The token of a value: what [`crate::envelope::Meta::tokens`] of a message with this value holds.
    pub fn token(&self, identifier: Identifier, value: &[u8]) -> Token {
        self.inner.tokens.of(identifier, value)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::Arc;

    use super::*;
    use crate::envelope::{Class, Meta};
    use crate::spool::tests::meta;
    use crate::spool::{Disk, Sight, SpoolConfig};

    fn open(folder: &std::path::Path, root: &Secret) -> Spool {
        let config: SpoolConfig = toml::from_str("path = '/unused'\nkey = 'unused'").unwrap();
        Spool::open(Arc::new(Disk::open(folder).unwrap()), root.clone(), &config).unwrap()
    }

    fn held(spool: &Spool) -> Vec<Vec<Token>> {
        let mut found = Vec::new();
        let see = &mut |sight| {
            if let Sight::Message(seen) = sight {
                found.push(seen.envelope.meta.tokens);
            }
            ControlFlow::Continue(())
        };
        spool.survey(see).unwrap();
        found
    }

    #[test]
    fn the_same_number_has_one_token_at_every_start_and_another_one_elsewhere() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let root = Secret::random();
        let first = open(folders[0].path(), &root);
        let patient = first.token(Identifier::PatientId, b"T-4711");
        assert_ne!(patient, first.token(Identifier::AccessionNumber, b"T-4711"));
        assert_ne!(patient, first.token(Identifier::PatientId, b"T-4712"));
        first.close();
        assert_eq!(open(folders[0].path(), &root).token(Identifier::PatientId, b"T-4711"), patient);
        assert_ne!(
            open(folders[1].path(), &root).token(Identifier::PatientId, b"T-4711"),
            patient,
            "spools can be compared"
        );
    }

    #[tokio::test]
    async fn what_a_message_can_be_found_by_is_there_after_a_restart() {
        let (folder, root) = (tempfile::tempdir().unwrap(), Secret::random());
        let spool = open(folder.path(), &root);
        let tokens = vec![spool.token(Identifier::PatientId, b"T-4711")];
        for (length, tokens) in [(10, tokens.clone()), (700_000, tokens.clone()), (10, Vec::new())] {
            let mut draft = spool.begin(Class::Imaging, &"ct".parse().unwrap());
            draft.write(&vec![7; length]).await.unwrap();
            draft.commit(Meta { tokens, ..meta(&spool, "ct", &["pacs"]) }).await.unwrap();
        }
        let expected = [tokens.clone(), tokens, Vec::new()];
        assert_eq!(held(&spool), expected);
        spool.close();
        assert_eq!(held(&open(folder.path(), &root)), expected);
    }
}
