//! The forms of lanes, kept beside the spool for the day on which no route serves one any more.
//!
//! What waits in such a lane was meant to go in a form that the configuration says no longer: without this a restart would send it as it is
//! stored. The file holds names of the configuration and forms, no content. One that can't be read is told, and what waits then goes as it is.

use std::io;
use std::path::{Path, PathBuf};

use crate::route::convert::Lane;
use crate::system::disk;

/// In the folder of the spool.
const FILE: &str = "forms.json";
/// A longer file is none of ours.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Whoever runs the service, and nobody else.
const MODE: u32 = 0o600;

/// What was kept.
pub fn recall(folder: &Path) -> Vec<Lane> {
    let path = folder.join(FILE);
    let read = || -> io::Result<Vec<Lane>> {
        if std::fs::metadata(&path)?.len() > FILE_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(serde_json::from_slice(&std::fs::read(&path)?)?)
    };
    match read() {
        Ok(lanes) => lanes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let path = path.display();
            tracing::error!(%path, %error, "the forms of lanes can't be read: what waits where no route is left is sent as it is stored");
            Vec::new()
        }
    }
}

/// Keeps these, and nothing else.
pub fn keep(folder: &Path, lanes: &[Lane]) {
    if let Err((path, error)) = write(folder, lanes) {
        let path = path.display();
        tracing::error!(%path, %error, "the forms of lanes can't be kept: after a restart what waits where no route is left is sent as it is stored");
    }
}

fn write(folder: &Path, lanes: &[Lane]) -> Result<(), (PathBuf, io::Error)> {
    let path = folder.join(FILE);
    if recall(folder) == lanes && path.exists() != lanes.is_empty() {
        return Ok(());
    }
    let outcome = match lanes {
        [] => std::fs::remove_file(&path).and_then(|()| disk::sync_folder(folder)),
        lanes => {
            serde_json::to_vec(lanes).map_err(io::Error::from).and_then(|bytes| disk::replace(&path, &bytes, MODE))
        }
    };
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err((path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{Conversion, Form};

    #[test]
    fn what_is_kept_is_recalled_and_a_damaged_file_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let conversion = Conversion { form: Form::Pcd01, with_raw: true };
        let lane = Lane { source: "a".parse().unwrap(), upstream: "x".parse().unwrap(), conversion };
        assert_eq!(recall(folder.path()), []);
        keep(folder.path(), std::slice::from_ref(&lane));
        assert_eq!(recall(folder.path()), [lane]);
        keep(folder.path(), &[]);
        assert!(!folder.path().join(FILE).exists());
        std::fs::write(folder.path().join(FILE), "[{").unwrap();
        assert_eq!(recall(folder.path()), []);
        keep(folder.path(), &[]);
        assert!(!folder.path().join(FILE).exists(), "and is put away");
    }
}
