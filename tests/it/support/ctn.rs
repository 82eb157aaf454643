//! CTN as a modality that asks for storage commitment: `storage_commit` asks and leaves, `commit_agent` listens for the report.
//!
//! Both keep what they know in a database, made with the scripts that come with CTN: what is asked for is looked up there, and only
//! a report on what was asked is taken. The database is a MariaDB of the value's own, reached over a socket in its folder and by no network.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::ports::listens;
use super::process::{Process, succeeds};
use super::tools::system;
use super::wait::eventually;

/// Where CTN's package keeps the scripts that make its tables.
const TABLES: &str = "/usr/share/ctn/mysql";
/// The names by which CTN's tools look for their databases, and the script of each.
const DATABASES: &[(&str, &str)] = &[
    ("CTNControl", "CreateControlTables.script"),
    ("INSTRUMENT_IDB", "CreateDIMTables.script"),
    ("INSTRUMENT_FIS", "CreateFISTables.script"),
];
/// From which it makes the UIDs of its requests.
const UIDS: &str = "ROOT 1.2.826.0.1.3680043.9.9999\nDEVICE 1\nSERIAL 1\nSTORAGECOMMITTRANSACTION 1\n";

/// A modality of the title `MODALITY`; ends with the value.
pub struct Ctn {
    agent: Process,
    _database: Process,
    folder: PathBuf,
}

impl Ctn {
    /// Starts one with its files in `folder` that takes reports on port `own`, of every address of the machine, and asks
    /// `asked`, whose title is `called`.
    #[track_caller]
    pub fn start(folder: &Path, own: u16, (called, asked): (&str, SocketAddr)) -> Self {
        let folder = folder.join("ctn");
        fs::create_dir_all(folder.join("data")).unwrap();
        fs::write(folder.join("uids"), UIDS).unwrap();
        fs::write(folder.join("tables.sql"), tables(own, called, asked.port())).unwrap();
        let mut database = Process::start(&mut mariadb(&folder));
        database.line_with("ready for connections");
        let mut agent = Process::start(tool(&folder, "commit_agent").args(["-n", "localhost"]).arg(own.to_string()));
        eventually("CTN listens for reports, or ends", || agent.has_ended() || listens(own));
        assert!(!agent.has_ended(), "CTN does not listen for reports; it said:\n{}", agent.said());
        Self { agent, _database: database, folder }
    }

    /// The modality made these images: its image database has them.
    #[track_caller]
    pub fn made(&self, images: &[&Path]) {
        succeeds(self.tool("fillImageDB").arg("INSTRUMENT_IDB").args(images));
    }

    /// Asks for storage commitment of all images of a patient. What went wrong is said and not told by the exit code.
    #[track_caller]
    pub fn ask(&self, called: &str, patient: &str) -> String {
        succeeds(self.tool("storage_commit").args(["-a", "MODALITY", "-p", patient, called]))
    }

    /// What the reports said so far: images that are committed, and that are not.
    pub fn reported(&self) -> (usize, usize) {
        let lines = self.agent.lines();
        let count = |what: &str| {
            let told = lines.iter().filter_map(|line| line.trim().strip_prefix(what)?.trim().parse::<usize>().ok());
            told.sum()
        };
        (count("SOP Instances committed:"), count("SOP Instances failed:"))
    }

    fn tool(&self, name: &str) -> Command {
        tool(&self.folder, name)
    }
}

fn tool(folder: &Path, name: &str) -> Command {
    let mut command = system(name);
    command.env("MYSQL_UNIX_PORT", folder.join("socket")).env("UIDFILE", folder.join("uids"));
    command
}

/// It needs no tables of its own as long as it asks nobody for a password.
fn mariadb(folder: &Path) -> Command {
    let mut command = system("mariadbd");
    // It must be the first.
    command.args(["--no-defaults", "--skip-networking", "--skip-grant-tables"]);
    command.args(["--skip-innodb", "--default-storage-engine=Aria"]);
    let mut place = |option: &str, name: &str| {
        command.arg(format!("--{option}={}", folder.join(name).display()));
    };
    place("datadir", "data");
    place("tmpdir", "data");
    place("socket", "socket");
    place("pid-file", "pid");
    place("init-file", "tables.sql");
    if nix::unistd::geteuid().is_root() {
        command.arg("--user=root");
    }
    command
}

fn tables(own: u16, called: &str, asked: u16) -> String {
    let mut sql = String::new();
    for (database, script) in DATABASES {
        let script = fs::read_to_string(Path::new(TABLES).join(script)).unwrap();
        writeln!(sql, "CREATE DATABASE {database};\nUSE {database};").unwrap();
        for statement in script.split("\\g").map(str::trim).filter(|statement| !statement.is_empty()) {
            // One line each: that is what a file of statements for its start has.
            let words: Vec<&str> = statement.split_whitespace().collect();
            writeln!(sql, "{};", words.join(" ")).unwrap();
        }
    }
    writeln!(sql, "USE CTNControl;").unwrap();
    for (title, port) in [("MODALITY", own), (called, asked)] {
        let rows = [
            format!("ApplicationEntity VALUES ('{title}', 'localhost', {port}, '', 'TEST')"),
            format!("FISAccess VALUES ('{title}', 'INSTRUMENT_FIS', '', '', 1, '')"),
            format!("StorageAccess VALUES ('{title}', 'INSTRUMENT_IDB', '', '', 1, '')"),
        ];
        for row in rows {
            writeln!(sql, "INSERT INTO {row};").unwrap();
        }
    }
    writeln!(sql, "INSERT INTO SecurityMatrix VALUES ('{called}', 'MODALITY');").unwrap();
    sql
}
