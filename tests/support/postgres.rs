//! A real PostgreSQL cluster in a temporary folder, for as long as the test process lives or the value is kept.
//!
//! Refuses to use a server that is already there. Invariant: the server listens only on loopback and on a socket inside the
//! folder; it is stopped and its folder removed when the value is dropped, and by a watcher process when the tests end without
//! dropping it, because they were killed or keep it in a static.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;
use tokio::sync::OnceCell;

/// The longest that starting, also after a crash, may take on a machine that is busy with other tests.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How often readiness is asked for.
const READY_INTERVAL: Duration = Duration::from_millis(20);

pub(crate) struct PostgresCluster {
    binaries: PathBuf,
    folder: TempDir,
    port: u16,
    /// Who runs the server: it refuses to run as root.
    account: Option<Account>,
    server: Mutex<Option<Child>>,
    /// Stops the server when this process is gone, however it went: it reads a pipe whose other end we hold.
    watcher: Mutex<Option<Child>>,
}

struct Account {
    uid: u32,
    gid: u32,
}

/// The cluster that the tests of one binary share, each with a database of its own.
static SHARED: OnceCell<PostgresCluster> = OnceCell::const_new();

impl PostgresCluster {
    /// The one cluster of this test binary, started by whoever asks first.
    pub(crate) async fn shared() -> &'static Self {
        SHARED.get_or_init(Self::start).await
    }

    /// Makes a cluster and waits until it takes connections.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("turnwise-postgres-").tempdir().unwrap();
        let account = account_beside_root();
        if let Some(account) = &account {
            chown(folder.path(), Some(account.uid), Some(account.gid)).unwrap();
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let cluster = Self {
            binaries: binaries(),
            folder,
            port: TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(),
            account,
            server: Mutex::new(None),
            watcher: Mutex::new(None),
        };
        cluster.initialise();
        cluster.launch().await;
        cluster
    }

    /// The address of one of its databases, over loopback.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes an empty database and gives its address. The name is a plain lower-case word.
    pub(crate) async fn create_database(&self, name: &str) -> String {
        let mut connection = PgConnection::connect(&self.url("postgres")).await.unwrap();
        let statement = format!("CREATE DATABASE {name}");
        connection.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
        connection.close().await.unwrap();
        self.url(name)
    }

    /// Stops it at once, like a power cut of the server process: no checkpoint, no goodbye.
    pub(crate) fn kill(&self) {
        if let Some(mut server) = self.server.lock().unwrap().take() {
            // SIGQUIT is an immediate shutdown, and unlike SIGKILL takes the server's children with it.
            signal("QUIT", server.id());
            server.wait().unwrap();
        }
        if let Some(mut watcher) = self.watcher.lock().unwrap().take() {
            watcher.stdin.take().unwrap().write_all(b"stopped\n").unwrap();
            watcher.wait().unwrap();
        }
    }

    /// Kills it if it runs, and starts it again on the same port; it recovers as after a crash.
    pub(crate) async fn restart(&self) {
        self.kill();
        self.launch().await;
    }

    fn initialise(&self) {
        let output = self
            .command("initdb")
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"])
            .args(["--no-sync", "--no-instructions", "--pgdata"])
            .arg(self.data())
            .output()
            .unwrap();
        assert!(output.status.success(), "initdb failed: {}", String::from_utf8_lossy(&output.stderr));
    }

    async fn launch(&self) {
        let log = fs::File::create(self.folder.path().join("server.log")).unwrap();
        let server = self
            .command("postgres")
            .arg("-D")
            .arg(self.data())
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"])
            .args(["-c", &format!("port={}", self.port)])
            .args(["-c", &format!("unix_socket_directories={}", self.folder.path().display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.watcher.lock().unwrap() = Some(watch(server.id(), self.folder.path()));
        *self.server.lock().unwrap() = Some(server);
        self.wait_until_ready().await;
    }

    async fn wait_until_ready(&self) {
        let give_up_at = Instant::now() + READY_TIMEOUT;
        loop {
            let failure = match PgConnection::connect(&self.url("postgres")).await {
                Ok(connection) => return connection.close().await.unwrap(),
                Err(error) => error,
            };
            let exited = self.server.lock().unwrap().as_mut().and_then(|server| server.try_wait().unwrap());
            assert!(
                exited.is_none() && Instant::now() < give_up_at,
                "PostgreSQL did not start ({failure}):\n{}",
                fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
            );
            tokio::time::sleep(READY_INTERVAL).await;
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A program of PostgreSQL's, run by an account it accepts, in a folder that account may enter.
    fn command(&self, program: &str) -> Command {
        let program = self.binaries.join(program);
        let mut command = match &self.account {
            Some(account) => {
                let mut command = Command::new("setpriv");
                command.args([format!("--reuid={}", account.uid), format!("--regid={}", account.gid)]);
                command.args(["--clear-groups", "--"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.current_dir(self.folder.path()).env("LC_ALL", "C");
        command
    }
}

impl Drop for PostgresCluster {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for a word on its standard input. When that closes without one, which the kernel does even if the tests are killed,
/// it stops the server and removes the folder.
fn watch(server: u32, folder: &Path) -> Child {
    const SCRIPT: &str = "read -r word && exit; kill -QUIT $1; while kill -0 $1; do sleep 0.05; done; rm -rf \"$2\"";
    Command::new("sh")
        .args(["-c", SCRIPT, "watcher", &server.to_string()])
        .arg(folder)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn signal(name: &str, process: u32) {
    Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().unwrap();
}

/// The newest installed version's programs.
fn binaries() -> PathBuf {
    let version = |folder: &PathBuf| -> u32 {
        let name = folder.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        name.and_then(|name| name.parse().ok()).unwrap_or(0)
    };
    let packaged = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let packaged = packaged.map(|entry| entry.path().join("bin")).collect::<Vec<_>>();
    let searched = std::env::var_os("PATH").unwrap_or_default();
    let searched = std::env::split_paths(&searched).collect::<Vec<_>>();
    let usable = |folder: &PathBuf| folder.join("initdb").is_file() && folder.join("postgres").is_file();
    let newest = packaged.into_iter().filter(usable).max_by_key(version);
    newest
        .or_else(|| searched.into_iter().find(usable))
        .expect("PostgreSQL's initdb and postgres are missing: run `make test`, which installs PostgreSQL")
}

/// The account to run as when we are root: PostgreSQL's own if its package made one, else nobody.
fn account_beside_root() -> Option<Account> {
    let id = |arguments: &[&str]| -> Option<u32> {
        let output = Command::new("id").args(arguments).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    if id(&["-u"])? != 0 {
        return None;
    }
    let of = |name: &str| Some(Account { uid: id(&["-u", name])?, gid: id(&["-g", name])? });
    of("postgres").or_else(|| of("nobody"))
}
