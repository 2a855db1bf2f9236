//! Telling a service manager how far the process is: sd_notify(3), <https://www.freedesktop.org/software/systemd/man/sd_notify.html>.
//!
//! Refuses to matter: without `NOTIFY_SOCKET`, or when nobody listens there, nothing is said. Invariant: `WATCHDOG=1` is said
//! from the runtime that runs the turns, so a runtime that is stuck falls silent and the manager restarts the process.

use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What was said at the start; says the rest until it is dropped.
#[derive(Debug)]
pub(crate) struct Notifier {
    manager: Option<Manager>,
    speaking: Option<JoinHandle<()>>,
}

impl Notifier {
    /// Finds the manager in the environment; `stop` is when the process begins to end.
    pub(crate) fn start(stop: CancellationToken) -> Self {
        let Some(manager) = Manager::from_environment() else { return Self { manager: None, speaking: None } };
        let watchdog = watchdog(|name| std::env::var(name).ok(), std::process::id());
        let speaking = manager.try_clone().map(|manager| tokio::spawn(speak(manager, watchdog, stop)));
        Self { manager: Some(manager), speaking }
    }

    /// Everything is up.
    pub(crate) fn ready(&self) {
        if let Some(manager) = &self.manager {
            manager.say("READY=1");
        }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        if let Some(speaking) = &self.speaking {
            speaking.abort();
        }
    }
}

async fn speak(manager: Manager, watchdog: Option<Duration>, stop: CancellationToken) {
    // Half of what the manager waits for, as its manual advises.
    let mut pings = watchdog.map(|patience| tokio::time::interval(patience / 2));
    let mut stopping = false;
    loop {
        tokio::select! {
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                manager.say("STOPPING=1");
            }
            () = next(&mut pings) => manager.say("WATCHDOG=1"),
        }
    }
}

async fn next(pings: &mut Option<tokio::time::Interval>) {
    match pings {
        Some(pings) => drop(pings.tick().await),
        None => std::future::pending().await,
    }
}

/// How long the manager waits for a sign of life; `None` when it does not, or not for this process.
fn watchdog(variable: impl Fn(&str) -> Option<String>, process: u32) -> Option<Duration> {
    if variable("WATCHDOG_PID").is_some_and(|id| id.parse() != Ok(process)) {
        return None;
    }
    let micros = variable("WATCHDOG_USEC")?.parse().ok().filter(|micros| *micros > 1)?;
    Some(Duration::from_micros(micros))
}

#[derive(Debug)]
struct Manager(UnixDatagram);

impl Manager {
    fn from_environment() -> Option<Self> {
        let name = std::env::var_os("NOTIFY_SOCKET")?;
        let socket = UnixDatagram::unbound().ok()?;
        let connected = socket.connect_addr(&address(&name)?);
        // A full socket must not hold the runtime up.
        connected.and_then(|()| socket.set_nonblocking(true)).ok()?;
        Some(Self(socket))
    }

    fn try_clone(&self) -> Option<Self> {
        self.0.try_clone().ok().map(Self)
    }

    fn say(&self, state: &str) {
        if let Err(error) = self.0.send(state.as_bytes()) {
            tracing::debug!(error = %error, state, "the service manager was not told");
        }
    }
}

/// A path, or with an `@` in front a name in Linux's abstract namespace.
fn address(name: &std::ffi::OsStr) -> Option<SocketAddr> {
    use std::os::unix::ffi::OsStrExt as _;
    match name.as_bytes() {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name).ok(),
        _ => SocketAddr::from_pathname(name).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_watchdog_of_this_process_counts() {
        let check = |usec: Option<&str>, pid: Option<&str>, expected: Option<u64>| {
            let variable = |name: &str| if name == "WATCHDOG_PID" { pid } else { usec }.map(str::to_owned);
            assert_eq!(watchdog(variable, 7), expected.map(Duration::from_secs));
        };
        check(Some("30000000"), Some("7"), Some(30));
        check(Some("30000000"), None, Some(30));
        check(Some("30000000"), Some("8"), None);
        check(Some("0"), Some("7"), None);
        check(Some("soon"), Some("7"), None);
        check(None, Some("7"), None);
    }
}
