//! What can be told of a spool's folder without opening it: whether it holds data, whether a key opens it, whether its keys
//! were destroyed. For a check of a configuration and for the beginning of a start.
//!
//! It never makes, locks or changes anything, and it may look at a folder that a running service has open.

use std::io;
use std::path::Path;

use super::keys::{self, KeyError, Keyring};
use super::recovery;
use super::seal::Secret;
use super::storage::ReadOnlyDisk;

/// Whether a folder holds no segments, or is not there: a key may then be made for it.
///
/// # Errors
/// As the disk gives them: this user may not look into the folder.
pub fn is_empty(path: &Path) -> io::Result<bool> {
    Ok(!recovery::has_segments(&ReadOnlyDisk::new(path))?)
}

/// Refuses a folder whose keys a person destroyed.
///
/// # Errors
/// [`KeyError::Destroyed`] with the moment.
pub fn refuse_destroyed(path: &Path) -> Result<(), KeyError> {
    keys::refuse_destroyed(&ReadOnlyDisk::new(path))
}

/// Whether the spool in a folder, if there is one, can be opened with this root key.
///
/// # Errors
/// [`KeyError`], as an opening would end with.
pub fn check_root(path: &Path, root: Secret) -> Result<(), KeyError> {
    let disk = ReadOnlyDisk::new(path);
    match Keyring::read(&disk, root)? {
        Some(_) => Ok(()),
        None if is_empty(path)? => Ok(()),
        None => Err(KeyError::Lost),
    }
}

#[cfg(test)]
mod tests {
    use super::super::storage::{Disk, Storage};
    use super::*;

    #[test]
    fn a_folder_is_judged_without_being_made_or_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool");
        assert!(is_empty(&path).unwrap() && check_root(&path, Secret::random()).is_ok());
        assert!(!path.exists(), "looking makes nothing");
        let (disk, root) = (Disk::open(&path).unwrap(), Secret::random());
        let mut keyring = Keyring::open(&disk, root.clone(), true).unwrap();
        assert!(check_root(&path, root.clone()).is_ok());
        assert!(matches!(check_root(&path, Secret::random()), Err(KeyError::Wrong)));
        disk.make_folder("clinical").unwrap();
        disk.create("clinical/1").unwrap();
        assert!(!is_empty(&path).unwrap() && refuse_destroyed(&path).is_ok());
        keyring.destroy(&disk, 1_700_000_000_000_000).unwrap();
        let told = check_root(&path, root.clone()).unwrap_err().to_string();
        assert!(told.contains("destroyed on request at 2023-11-14T22:13:20Z"), "{told}");
        assert!(matches!(refuse_destroyed(&path), Err(KeyError::Destroyed(_))));
        assert!(matches!(Keyring::open(&disk, root, true), Err(KeyError::Destroyed(_))), "no new key in its place");
    }
}
