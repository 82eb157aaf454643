//! What the kernel knows about a process and the machine: memory, bytes written, CPU time.

use std::fs;
use std::path::Path;

/// Present resident memory, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    status_kib(pid, "VmRSS:")
}

/// Greatest resident memory since the start or since [`forget_peak`], in KiB.
pub fn peak_kib(pid: u32) -> u64 {
    status_kib(pid, "VmHWM:")
}

/// Begins a new measurement of the peak (proc(5), clear_refs).
pub fn forget_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

/// Bytes that the process caused to be sent to the storage layer: all files together, without the file system's journal.
pub fn written_bytes(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    number_after(&io, "write_bytes:")
}

/// CPU time so far, in seconds: user and system, all threads.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // After the command's closing parenthesis; utime and stime are fields 14 and 15, in hundredths of a second on Linux.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = fields.iter().skip(11).take(2).map(|field| field.parse::<f64>().unwrap()).sum();
    ticks / 100.0
}

/// Bytes written to the block device below `folder` since boot, by everybody; `None` when it can't be told.
pub fn device_bytes(folder: &Path) -> Option<u64> {
    let (device, _) = mounted(folder)?;
    let name = device.strip_prefix("/dev/")?;
    let stat = fs::read_to_string(format!("/sys/class/block/{name}/stat")).ok()?;
    let sectors: u64 = stat.split_whitespace().nth(6)?.parse().ok()?;
    Some(sectors * 512)
}

/// The machine in one line: processor, cores, memory, kernel, file system.
pub fn machine(folder: &Path) -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).and_then(|rest| rest.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = number_after(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:") >> 20;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (device, kind) =
        mounted(folder).unwrap_or_else(|| ("unknown device".to_owned(), "unknown file system".to_owned()));
    format!(
        "{} ({}), {cores} cores, {memory} GiB of memory, Linux {}, {kind} on {device}",
        model.unwrap_or("unknown processor").trim(),
        std::env::consts::ARCH,
        kernel.trim()
    )
}

/// Device and file system of the mount that holds `folder`.
fn mounted(folder: &Path) -> Option<(String, String)> {
    let folder = folder.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let fields = mounts.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [device, point, kind, ..] = fields.as_slice() else { return None };
        folder.starts_with(point).then(|| (point.len(), (*device).to_owned(), (*kind).to_owned()))
    });
    fields.max_by_key(|(length, _, _)| *length).map(|(_, device, kind)| (device, kind))
}

fn status_kib(pid: u32, key: &str) -> u64 {
    number_after(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap(), key)
}

fn number_after(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
