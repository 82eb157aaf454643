//! Who may ask over the control socket, and who may change: decided by the peer's uid and groups, which the kernel tells.
//!
//! Root and the uid that the service itself runs under may change. Members of `change-group` may change, members of
//! `read-group` may read; everybody else is told which group would let them in. Groups are looked up anew for each
//! connection, so that adding a person to a group needs no restart. There are no passwords and no tokens here.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};
use serde::Deserialize;

use super::verbs::Level;
use crate::values::{Problems, SecretRef, Section};

/// Where the socket is unless the configuration says otherwise; also where the command line looks for it.
pub const SOCKET_PATH: &str = "/run/wardgate/control.sock";
/// Where a user's own programs keep their sockets, by the XDG base directory specification; set at a login.
const RUNTIME_FOLDER: &str = "XDG_RUNTIME_DIR";
/// Longest path that fits into a socket address, with room for the suffix of the name under which it is made.
const SOCKET_PATH_BYTES_MAX: usize = 96;

/// `[gateway] control`: the socket of the command line, and the groups that may use it.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ControlConfig {
    /// The socket's path; its folder is made when it is not there.
    pub socket: PathBuf,
    /// Members may read: status, lists, figures. None: only those who may change.
    pub read_group: Option<String>,
    /// Members may change, too. None: only root and the service's own user.
    pub change_group: Option<String>,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self { socket: SOCKET_PATH.into(), read_group: None, change_group: None }
    }
}

impl Section for ControlConfig {
    fn check(&self, problems: &mut Problems) {
        if !self.socket.is_absolute() {
            problems.error("socket", format!("write the whole path, for example \"{SOCKET_PATH}\""));
        }
        if self.socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let text = format!("a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes; choose a shorter one");
            problems.error("socket", text);
        }
        for (key, group) in [("read-group", &self.read_group), ("change-group", &self.change_group)] {
            if group.as_ref().is_some_and(|name| name.is_empty() || name.contains([':', ',', '\0', '/'])) {
                problems.error(key, "not the name of a group; leave the line out to let nobody else in");
            }
        }
    }

    fn files(&mut self, _visit: &mut dyn FnMut(&mut SecretRef)) {}
}

/// A place for the socket that a user without rights can make.
pub fn own_socket() -> PathBuf {
    let folder = std::env::var_os(RUNTIME_FOLDER).map(PathBuf::from).filter(|folder| folder.is_absolute());
    let folder = folder.or_else(|| std::env::var_os("HOME").map(PathBuf::from)).unwrap_or_else(std::env::temp_dir);
    folder.join("wardgate.sock")
}

/// The one at the other end of the socket, as the kernel knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Effective uid when it connected.
    pub uid: u32,
    /// Effective gid when it connected, and the groups that the uid's user belongs to.
    pub gids: Vec<u32>,
}

/// The rule of one socket.
#[derive(Clone, Debug)]
pub struct Access {
    own_uid: u32,
    read_group: Option<String>,
    change_group: Option<String>,
}

/// A group that the configuration names is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no group \"{0}\" on this system; make it with: groupadd --system {0}")]
pub struct NoSuchGroup(pub String);

impl Access {
    /// The rule of this configuration, for a service that runs under the present uid.
    ///
    /// # Errors
    /// [`NoSuchGroup`].
    pub fn new(config: &ControlConfig) -> Result<Self, NoSuchGroup> {
        for name in [&config.read_group, &config.change_group].into_iter().flatten() {
            gid_of(name).ok_or_else(|| NoSuchGroup(name.clone()))?;
        }
        let ControlConfig { read_group, change_group, .. } = config.clone();
        Ok(Self { own_uid: geteuid().as_raw(), read_group, change_group })
    }

    /// What the peer may do; `None`: nothing. Looks groups up, so it may block for a moment.
    pub fn level(&self, peer: &Peer) -> Option<Level> {
        if peer.uid == 0 || peer.uid == self.own_uid {
            return Some(Level::Change);
        }
        let member =
            |group: &Option<String>| group.as_deref().and_then(gid_of).is_some_and(|gid| peer.gids.contains(&gid));
        match (member(&self.change_group), member(&self.read_group)) {
            (true, _) => Some(Level::Change),
            (false, true) => Some(Level::Read),
            (false, false) => None,
        }
    }

    /// Tells someone who asked for `wanted` how to be let in.
    pub fn advice(&self, wanted: Level) -> String {
        let group = match wanted {
            Level::Change => self.change_group.as_ref(),
            Level::Read => self.read_group.as_ref().or(self.change_group.as_ref()),
        };
        let what = match wanted {
            Level::Change => "change something or see content",
            Level::Read => "read",
        };
        match group {
            Some(group) => {
                format!("to {what} here you must be in the group \"{group}\" (or root): usermod -aG {group} YOU")
            }
            None => {
                format!("to {what} here you must be root or the service's own user; [gateway] control can name a group")
            }
        }
    }

    /// The file mode of the socket and the group it should belong to. With one group the file system keeps everybody else
    /// out already; two groups can't own one file, so that the rule alone decides.
    pub fn file_mode(&self) -> (u32, Option<u32>) {
        let gids = [&self.read_group, &self.change_group].map(|group| group.as_deref().and_then(gid_of));
        match gids {
            [None, None] => (0o600, None),
            [Some(read), Some(change)] if read != change => (0o666, None),
            [read, change] => (0o660, read.or(change)),
        }
    }
}

/// The peer with all its groups. Looks its user up, so it may block for a moment.
pub fn peer(uid: u32, gid: u32) -> Peer {
    let mut gids = vec![gid];
    if let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid))
        && let Ok(name) = CString::new(user.name)
        && let Ok(groups) = getgrouplist(&name, user.gid)
    {
        gids.extend(groups.iter().map(|gid| gid.as_raw()));
    }
    Peer { uid, gids }
}

/// The name of the group that owns a socket file, for the advice to someone whom the file system kept out.
pub fn group_of_file(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    let writable_by_group = metadata.mode() & 0o020 != 0;
    let group = Group::from_gid(Gid::from_raw(metadata.gid())).ok().flatten()?;
    writable_by_group.then_some(group.name)
}

fn gid_of(name: &str) -> Option<u32> {
    Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(read: Option<&str>, change: Option<&str>) -> Access {
        Access { own_uid: 4_000, read_group: read.map(Into::into), change_group: change.map(Into::into) }
    }

    #[test]
    fn root_and_the_service_itself_may_change_and_a_stranger_may_nothing() {
        let access = access(None, None);
        for uid in [0, 4_000] {
            assert_eq!(access.level(&Peer { uid, gids: vec![65_534] }), Some(Level::Change));
        }
        assert_eq!(access.level(&Peer { uid: 4_001, gids: vec![0] }), None);
        assert_eq!(access.file_mode(), (0o600, None));
    }

    #[test]
    fn each_group_opens_its_own_door() {
        // Groups that every Debian and every Yocto image has, whatever their numbers are.
        let access = access(Some("tty"), Some("disk"));
        let (tty, disk) = (gid_of("tty").unwrap(), gid_of("disk").unwrap());
        assert_eq!(access.level(&Peer { uid: 4_001, gids: vec![tty] }), Some(Level::Read));
        assert_eq!(access.level(&Peer { uid: 4_001, gids: vec![tty, disk] }), Some(Level::Change));
        assert_eq!(access.level(&Peer { uid: 4_001, gids: vec![65_533] }), None);
        assert!(access.advice(Level::Change).contains("\"disk\""));
        assert!(access.advice(Level::Read).contains("\"tty\""));
        assert_eq!(access.file_mode(), (0o666, None));
    }

    #[test]
    fn one_group_owns_the_socket_file() {
        assert_eq!(access(Some("tty"), None).file_mode(), (0o660, gid_of("tty")));
    }

    #[test]
    fn a_group_that_is_not_there_is_named_with_what_to_do() {
        let config = ControlConfig { read_group: Some("no-such-group".into()), ..ControlConfig::default() };
        assert!(Access::new(&config).unwrap_err().to_string().contains("groupadd --system no-such-group"));
    }

    #[test]
    fn a_relative_or_endless_socket_path_is_a_problem() {
        for socket in ["control.sock".to_owned(), format!("/run/{}", "x".repeat(100))] {
            let mut problems = Problems::default();
            ControlConfig { socket: socket.into(), ..ControlConfig::default() }.check(&mut problems);
            assert_eq!(problems.into_found().len(), 1);
        }
    }
}
