//! Which serial ports there are: by their physical place, by the adapter's own name, and what the adapter says of itself in sysfs.
//!
//! Nothing is opened here. All paths count from a root folder, so that a box can be played.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Folders between a terminal's device in sysfs and the USB device that it belongs to.
const PARENTS_MAX: usize = 8;
/// Longest word of an adapter about itself, in characters.
const WORD_CHARACTERS_MAX: usize = 80;

/// A port that is there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Port {
    /// What to write into the configuration: the path by its place, or the device when there is none.
    pub path: PathBuf,
    /// The path by the adapter's own name, which two adapters without serial numbers share.
    pub by_id: Option<PathBuf>,
    /// What the kernel calls it now.
    pub device: PathBuf,
    /// Who made the adapter.
    pub vendor: Option<String>,
    /// What it calls itself.
    pub product: Option<String>,
    /// USB vendor and product id: `0403:6001`.
    pub usb_id: Option<String>,
    /// Its serial number.
    pub serial_number: Option<String>,
}

/// All ports, in the order of their paths.
pub fn list(root: &Path) -> Vec<Port> {
    let by_id: BTreeMap<PathBuf, PathBuf> =
        links(&root.join("dev/serial/by-id")).into_iter().map(|(link, device)| (device, link)).collect();
    let mut found: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for (link, device) in links(&root.join("dev/serial/by-path")) {
        // The shorter of two names of one place (udev gives USB ports a newer and an older one).
        found.entry(device).and_modify(|held| shorter(held, &link)).or_insert(link);
    }
    for device in built_in(root) {
        found.entry(device.clone()).or_insert(device);
    }
    let mut ports: Vec<Port> =
        found.into_iter().map(|(device, path)| described(root, path, by_id.get(&device).cloned(), device)).collect();
    ports.sort_by(|one, other| one.path.cmp(&other.path));
    ports
}

fn shorter(held: &mut PathBuf, other: &Path) {
    if other.as_os_str().len() < held.as_os_str().len() {
        *held = other.to_owned();
    }
}

/// The links of a folder with what they lead to; those that lead nowhere are left out.
fn links(folder: &Path) -> Vec<(PathBuf, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let link = |entry: fs::DirEntry| Some((entry.path(), fs::canonicalize(entry.path()).ok()?));
    entries.filter_map(link).collect()
}

/// Ports of the board: the kernel lists some that are not there, whose type is 0.
fn built_in(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.join("sys/class/tty")).into_iter().flatten().flatten();
    let is_there = |entry: &fs::DirEntry| word(&entry.path().join("type")).is_some_and(|kind| kind != "0");
    let device = |entry: fs::DirEntry| root.join("dev").join(entry.file_name());
    entries.filter(is_there).map(device).filter(|device| device.exists()).collect()
}

fn described(root: &Path, path: PathBuf, by_id: Option<PathBuf>, device: PathBuf) -> Port {
    let start = device.file_name().map(|name| root.join("sys/class/tty").join(name).join("device"));
    let start = start.and_then(|link| fs::canonicalize(link).ok());
    let ancestors = start.iter().flat_map(|start| start.ancestors().take(PARENTS_MAX));
    let usb = ancestors.into_iter().find(|folder| folder.join("idVendor").exists());
    let said = |key: &str| usb.and_then(|folder| word(&folder.join(key)));
    let usb_id = said("idVendor").zip(said("idProduct")).map(|(vendor, product)| format!("{vendor}:{product}"));
    Port {
        path,
        by_id,
        device,
        vendor: said("manufacturer"),
        product: said("product"),
        usb_id,
        serial_number: said("serial"),
    }
}

/// What a file of sysfs says, fit to be printed.
fn word(file: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&fs::read(file).ok()?).into_owned();
    let printable = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    Some(printable.take(WORD_CHARACTERS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(file: PathBuf, text: &str) {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    #[test]
    fn adapters_are_listed_by_their_place_with_what_they_say_of_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let root = &fs::canonicalize(folder.path()).unwrap();
        for device in ["ttyUSB0", "ttyUSB1", "ttyS0", "ttyS1"] {
            write(root.join("dev").join(device), "");
        }
        let usb = root.join("sys/devices/usb1/1-1");
        for (key, text) in
            [("idVendor", "0403\n"), ("idProduct", "6001\n"), ("manufacturer", "FTDI\n"), ("serial", "A1\n")]
        {
            write(usb.join(key), text);
        }
        fs::create_dir_all(usb.join("1-1:1.0/ttyUSB0")).unwrap();
        for (device, kind) in [("ttyS0", "4\n"), ("ttyS1", "0\n"), ("ttyUSB0", "0\n")] {
            write(root.join("sys/class/tty").join(device).join("type"), kind);
        }
        symlink(usb.join("1-1:1.0/ttyUSB0"), root.join("sys/class/tty/ttyUSB0/device")).unwrap();
        for (link, device) in [
            ("by-path/pci-0-usb-0:1:1.0-port0", "ttyUSB0"),
            ("by-path/pci-0-usbv2-0:1:1.0-port0", "ttyUSB0"),
            ("by-path/pci-0-usb-0:2:1.0-port0", "ttyUSB1"),
            ("by-path/gone", "ttyUSB9"),
            ("by-id/usb-FTDI_A1", "ttyUSB0"),
        ] {
            let link = root.join("dev/serial").join(link);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(format!("../../{device}"), link).unwrap();
        }
        let ports = list(root);
        let names: Vec<_> = ports.iter().map(|port| port.path.strip_prefix(root).unwrap().to_str().unwrap()).collect();
        assert_eq!(
            names,
            ["dev/serial/by-path/pci-0-usb-0:1:1.0-port0", "dev/serial/by-path/pci-0-usb-0:2:1.0-port0", "dev/ttyS0"]
        );
        assert_eq!(ports[0].by_id.as_ref().unwrap(), &root.join("dev/serial/by-id/usb-FTDI_A1"));
        assert_eq!((ports[0].vendor.as_deref(), ports[0].usb_id.as_deref()), (Some("FTDI"), Some("0403:6001")));
        assert_eq!((ports[0].serial_number.as_deref(), ports[1].vendor.as_deref()), (Some("A1"), None));
        assert_eq!(list(Path::new("/nowhere")), []);
    }
}
