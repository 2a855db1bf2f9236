//! What the processes under test use: CPU time and memory, as Linux accounts for them in /proc (proc(5)).
//!
//! Refuses to guess: where /proc does not say, there is no figure. Invariant: only reads, but for the reset of a process's own
//! peak of resident memory (`clear_refs`, value 5), which changes nothing for the process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde::Serialize;

/// `USER_HZ`, the unit of times in /proc/PID/stat: 100 on every Linux architecture that Rust runs on but Alpha.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processes whose use is added up under one name: the deployment, its database, its stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Group {
    roots: Vec<u32>,
}

/// What a group has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Usage {
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
    /// The most memory that it held at once since the peak was reset, in MiB: resident, shared pages counted once for several
    /// processes by their proportional share.
    pub memory_mib: f64,
}

impl Group {
    /// The processes with these ids, and their children.
    pub(super) fn of(roots: Vec<u32>) -> Self {
        Self { roots }
    }

    /// The process that listens on a TCP port of this machine, and its children.
    pub(super) fn listening_on(port: u16) -> Self {
        Self { roots: listener(port).into_iter().collect() }
    }

    fn members(&self) -> BTreeSet<u32> {
        let children = children();
        let mut found = BTreeSet::new();
        let mut open = self.roots.clone();
        while let Some(pid) = open.pop() {
            if found.insert(pid) {
                open.extend(children.get(&pid).into_iter().flatten());
            }
        }
        found
    }

    /// Begins a new peak.
    pub(super) fn reset_peak(&self) {
        for pid in self.members() {
            // Not ours to reset, or gone: then the peak is that of its whole life.
            let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        }
    }

    /// What it has used; `None` where /proc does not say.
    pub(super) fn usage(&self) -> Option<Usage> {
        let members = self.members();
        let cpu: f64 = members.iter().filter_map(|pid| cpu_seconds(*pid)).sum();
        let memory = match members.len() {
            0 => return None,
            1 => members.iter().filter_map(|pid| status_kib(*pid, "VmHWM:")).sum::<u64>(),
            _ => members.iter().filter_map(|pid| proportional_kib(*pid)).sum(),
        };
        Some(Usage { cpu_seconds: cpu, memory_mib: mib(memory) })
    }
}

/// CPU time of the process and of those of its children that have ended.
fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything; utime, stime, cutime and cstime are fields 14 to 17.
    let fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let ticks: u32 = fields.skip(11).take(4).filter_map(|field| field.parse::<u32>().ok()).sum();
    Some(f64::from(ticks) / TICKS_PER_SECOND)
}

fn status_kib(pid: u32, name: &str) -> Option<u64> {
    kib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, name)
}

fn proportional_kib(pid: u32) -> Option<u64> {
    kib(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?, "Pss:")
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "memory below 2^53 KiB")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1_024.0
}

fn children() -> BTreeMap<u32, Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in processes() {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    children
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The process that holds the listening socket; the oldest when a server shares it with its children.
fn listener(port: u16) -> Option<u32> {
    let sockets: BTreeSet<PathBuf> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().filter_map(|line| listening_inode(line, port)).collect::<Vec<_>>())
        .map(|inode| PathBuf::from(format!("socket:[{inode}]")))
        .collect();
    let holds = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| sockets.contains(&target))
    };
    if sockets.is_empty() { None } else { processes().filter(holds).min() }
}

/// `sl local_address rem_address st ... inode`, addresses in hexadecimal, state 0A is LISTEN.
fn listening_inode(line: &str, port: u16) -> Option<u64> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
    let listening = *fields.get(3)? == "0A" && u16::from_str_radix(local_port, 16).ok()? == port;
    if listening { fields.get(9)?.parse().ok() } else { None }
}

/// A line about the machine: processor, cores, memory, kernel, and how busy it is already.
pub(super) fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let processor = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned()))
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory_gib = kib(&read("/proc/meminfo"), "MemTotal:").unwrap_or(0) / (1_024 * 1_024);
    let kernel = read("/proc/sys/kernel/osrelease");
    let busy = read("/proc/loadavg");
    let busy = busy.split(' ').next().unwrap_or("?");
    format!("{processor}, {cores} cores, {memory_gib} GiB, Linux {}; load average {busy} at the start", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_and_accounted_for() -> std::io::Result<()> {
        let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
        let group = Group::listening_on(socket.local_addr()?.port());
        assert_eq!(group.roots, [std::process::id()]);
        let usage = group.usage().unwrap_or_default();
        assert!(usage.memory_mib > 1.0, "{usage:?}");
        drop(socket);
        Ok(())
    }

    #[test]
    fn a_line_of_the_socket_table_reads() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1";
        assert_eq!(listening_inode(line, 8_080), Some(4_711));
        assert_eq!(listening_inode(line, 8_081), None);
        assert_eq!(listening_inode(&line.replace(" 0A ", " 01 "), 8_080), None);
    }
}
