//! Which nats-server: the one named by `TURNWISE_NATS_SERVER`, else `./.tools/nats-server`, else the first on `PATH`.
//!
//! Refuses to fall back from a named one to another, and to run one that is too old. Invariant: a [`Binary`] has told its
//! version.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::Error;

/// Major and minor version from which per-message TTL and the consumer API that we use exist.
pub(super) const OLDEST: (u32, u32) = (2, 11);

const NAME: &str = "nats-server";

/// A nats-server that is new enough.
#[derive(Debug, Clone)]
pub struct Binary {
    path: PathBuf,
    version: String,
}

impl Binary {
    /// Asks the program for its version.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunnable`], [`Error::UnknownVersion`] or [`Error::TooOld`].
    pub async fn at(path: PathBuf) -> Result<Self, Error> {
        let output = Command::new(&path)
            .arg("--version")
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|source| Error::NotRunnable { path: path.clone(), source })?;
        let said = String::from_utf8_lossy(&output.stdout);
        match version(&said) {
            None => Err(Error::UnknownVersion { path }),
            Some((version, number)) if number < OLDEST => Err(Error::TooOld { path, version: version.to_owned() }),
            Some((version, _)) => Ok(Self { path, version: version.to_owned() }),
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Such as `2.15.1`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }
}

/// Finds the server to run.
///
/// # Errors
///
/// [`Error::NotFound`], or what [`Binary::at`] says of the one that was found.
pub async fn find_binary() -> Result<Binary, Error> {
    let named = std::env::var_os("TURNWISE_NATS_SERVER");
    let path = std::env::var_os("PATH").unwrap_or_default();
    Binary::at(choose(named.as_deref(), Path::new(".tools"), &path).ok_or(Error::NotFound)?).await
}

fn choose(named: Option<&OsStr>, tools: &Path, path: &OsStr) -> Option<PathBuf> {
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        return Some(named.into());
    }
    let folders = std::iter::once(tools.to_owned()).chain(std::env::split_paths(path));
    folders.map(|folder| folder.join(NAME)).find(|candidate| candidate.is_file())
}

/// `nats-server: v2.15.1` as (`2.15.1`, (2, 15)).
fn version(said: &str) -> Option<(&str, (u32, u32))> {
    let version = said.trim().strip_prefix("nats-server: v")?;
    let mut numbers = version.split(['.', '-']);
    Some((version, (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_and_compared_as_numbers() {
        let check = |said, expected| assert_eq!(version(said).map(|(_, number)| number), expected, "{said}");
        check("nats-server: v2.15.1\n", Some((2, 15)));
        check("nats-server: v2.9.10", Some((2, 9)));
        check("nats-server: v2.12.0-RC.1", Some((2, 12)));
        check("v2.15.1", None);
        check("", None);
        assert!(version("nats-server: v2.9.10").is_some_and(|(_, number)| number < OLDEST));
    }

    #[test]
    fn a_named_server_wins_even_when_it_is_missing() -> std::io::Result<()> {
        let tools = tempfile::tempdir()?;
        let path = tempfile::tempdir()?;
        let on_path = path.path().join(NAME);
        let choose = |named: Option<&str>| choose(named.map(OsStr::new), tools.path(), path.path().as_os_str());
        assert_eq!(choose(None), None);
        std::fs::write(&on_path, "")?;
        assert_eq!(choose(None), Some(on_path));
        let in_tools = tools.path().join(NAME);
        std::fs::write(&in_tools, "")?;
        assert_eq!(choose(Some("")), Some(in_tools));
        assert_eq!(choose(Some("/absent")), Some("/absent".into()));
        Ok(())
    }
}
