//! The managed server's files in the data folder, and its configuration.
//!
//! Refuses to touch `jetstream/`, which is the server's own. Invariant: all paths are absolute, so the command line of a
//! server names its data folder without doubt.

use std::fs::File;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::Error;
use crate::config::Sync;

/// Where everything is; all of it below `data_dir`.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) data_dir: PathBuf,
    pub(super) config: PathBuf,
    pub(super) log: PathBuf,
    pub(super) pid: PathBuf,
    pub(super) lock: PathBuf,
    /// Tells our server from a stranger's on the same port; new with every run.
    pub(super) server_name: String,
}

impl Files {
    pub(super) fn prepare(data_dir: &Path) -> Result<Self, Error> {
        let io_error = |source| Error::Files { path: data_dir.to_owned(), source };
        std::fs::create_dir_all(data_dir).map_err(io_error)?;
        let data_dir = data_dir.canonicalize().map_err(io_error)?;
        Ok(Self {
            config: data_dir.join("nats-server.conf"),
            log: data_dir.join("nats-server.log"),
            pid: data_dir.join("nats-server.pid"),
            lock: data_dir.join("nats-server.lock"),
            server_name: format!("turnwise-{}", Uuid::now_v7()),
            data_dir,
        })
    }

    pub(super) fn write_config(&self, port: u16, sync: Sync) -> Result<(), Error> {
        let text = self.config_text(port, sync);
        std::fs::write(&self.config, text).map_err(|source| Error::Files { path: self.config.clone(), source })
    }

    /// Appends: the server's own log, and above all what it says on stderr before it can log.
    pub(super) fn open_log(&self) -> Result<File, Error> {
        let opened = File::options().create(true).append(true).open(&self.log);
        opened.map_err(|source| Error::Files { path: self.log.clone(), source })
    }

    /// Options as in <https://docs.nats.io/running-a-nats-service/configuration>.
    fn config_text(&self, port: u16, sync: Sync) -> String {
        let sync_interval = match sync {
            // Every publish is on disk before it is acknowledged: nothing accepted is lost to a power failure.
            Sync::Always => "always",
            // The server's own default.
            Sync::Interval => "2m",
        };
        format!(
            "# Written by turnwise at every start; changes are lost.\n\
             server_name: \"{name}\"\n\
             listen: \"127.0.0.1:{port}\"\n\
             max_payload: 8MB\n\
             pid_file: {pid}\n\
             log_file: {log}\n\
             logfile_size_limit: 16MB\n\
             logfile_max_num: 3\n\
             jetstream {{\n\
             \x20 store_dir: {store}\n\
             \x20 sync_interval: {sync_interval}\n\
             }}\n",
            name = self.server_name,
            pid = quoted(&self.pid),
            log = quoted(&self.log),
            // The server makes a folder `jetstream` in here.
            store = quoted(&self.data_dir),
        )
    }
}

fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{text}\"")
}
