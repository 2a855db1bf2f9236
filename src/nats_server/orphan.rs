//! Servers that a killed predecessor left behind, and how a server is asked to stop.
//!
//! Refuses to signal a process whose command line is not exactly the one we start a server of this data folder with: process
//! ids are used again. Invariant: called only with the folder's lock in hand, so whatever it finds has no owner.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;
use tokio::time::Instant;

use super::binary::Binary;
use super::files::Files;
use super::{Error, PATIENCE, POLL_INTERVAL};

/// Stops every server of this data folder, and returns when it is gone.
pub(super) async fn stop_all(binary: &Binary, files: &Files) -> Result<(), Error> {
    for pid in candidates(files) {
        if !is_ours(pid, files).await {
            continue;
        }
        tracing::warn!(pid, "a nats-server of an earlier run is still there and is stopped");
        terminate(binary, pid).await;
        let deadline = Instant::now() + PATIENCE;
        while is_ours(pid, files).await {
            if Instant::now() > deadline {
                return Err(Error::Orphan { pid, path: files.data_dir.clone() });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
    Ok(())
}

/// SIGTERM, on which the server flushes and ends. The server's own program sends it: the standard library knows only SIGKILL,
/// and a container need not have a `kill`.
pub(super) async fn terminate(binary: &Binary, pid: u32) {
    let sent = Command::new(binary.path())
        .args(["--signal", &format!("term={pid}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await;
    if !sent.is_ok_and(|status| status.success()) {
        tracing::warn!(pid, "nats-server could not be asked to stop");
    }
}

/// Every process where `/proc` lists them, since a server killed with its parent right after the start has not written its
/// process id yet; elsewhere the one in the file.
fn candidates(files: &Files) -> Vec<u32> {
    if has_proc()
        && let Ok(processes) = std::fs::read_dir("/proc")
    {
        return processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    }
    let recorded = std::fs::read_to_string(&files.pid).ok();
    recorded.and_then(|text| text.trim().parse().ok()).into_iter().collect()
}

async fn is_ours(pid: u32, files: &Files) -> bool {
    let Some(config) = files.config.to_str() else { return false };
    if has_proc() {
        // NUL-terminated arguments; none for a process that has ended and waits for its parent.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).skip(1).collect();
        return arguments == [b"-c".as_slice(), config.as_bytes(), b""];
    }
    let line = Command::new("ps").args(["-o", "args=", "-p", &pid.to_string()]).output().await;
    line.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim_end().ends_with(&format!(" -c {config}")))
}

fn has_proc() -> bool {
    Path::new("/proc/self/cmdline").exists()
}
