//! The managed nats-server against a real one: start, stop, a second instance, an orphan, a killed child.
//!
//! Needs a nats-server as `turnwise dev` does: in `TURNWISE_NATS_SERVER`, `./.tools` or `PATH`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use tokio::sync::mpsc;
use turnwise::config::Sync;
use turnwise::nats_server::{Binary, Error, ManagedServer, find_binary};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn what_was_published_survives_stop_and_start() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().join("made/as \"needed\"");
    let server = ManagedServer::start(&folder, Sync::Always).await.unwrap();
    assert!(config_of(&folder).contains("sync_interval: always"));
    publish_one(server.url()).await;
    server.stop().await;

    let server = ManagedServer::start(&folder, Sync::Interval).await.unwrap();
    assert!(config_of(&folder).contains("sync_interval: 2m"));
    assert_eq!(stored_messages(server.url()).await, 1);
    let url = server.url().to_owned();
    server.stop().await;

    assert!(async_nats::connect(&url).await.is_err(), "nobody listens after stop()");
    assert!(folder.join("nats-server.log").metadata().unwrap().len() > 0, "the server's log is kept");
    assert!(folder.join("jetstream").is_dir(), "streams lie in the data folder");
}

#[tokio::test]
async fn a_second_instance_on_the_same_folder_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let first = ManagedServer::start(data.path(), Sync::Always).await.unwrap();
    let refused = ManagedServer::start(data.path(), Sync::Always).await.unwrap_err();
    assert!(matches!(refused, Error::InUse { .. }), "{refused}");
    assert!(refused.hint().is_some());
    publish_one(first.url()).await;
    first.stop().await;
    ManagedServer::start(data.path(), Sync::Always).await.unwrap().stop().await;
}

#[tokio::test]
async fn two_folders_have_two_servers() {
    let (left, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (left, right) = tokio::try_join!(
        ManagedServer::start(left.path(), Sync::Always),
        ManagedServer::start(right.path(), Sync::Always)
    )
    .unwrap();
    assert_ne!(left.url(), right.url());
    tokio::join!(left.stop(), right.stop());
}

#[tokio::test]
async fn the_orphan_of_a_killed_predecessor_is_stopped_first() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().canonicalize().unwrap();
    ManagedServer::start(&folder, Sync::Always).await.unwrap().stop().await;
    // What remains when turnwise is killed: the same program with the same configuration, and no lock.
    let binary = find_binary().await.unwrap();
    let mut orphan = tokio::process::Command::new(binary.path())
        .arg("-c")
        .arg(folder.join("nats-server.conf"))
        .kill_on_drop(true)
        .spawn()
        .unwrap();

    let server = ManagedServer::start(&folder, Sync::Always).await.unwrap();
    let status = tokio::time::timeout(PATIENCE, orphan.wait()).await.unwrap();
    assert!(status.unwrap().code().is_some(), "it was asked to stop, not killed");
    publish_one(server.url()).await;
    server.stop().await;
}

#[tokio::test]
async fn a_killed_child_is_restarted_on_the_same_port() {
    let data = tempfile::tempdir().unwrap();
    let server = ManagedServer::start(data.path(), Sync::Always).await.unwrap();
    publish_one(server.url()).await;
    let (events, mut seen) = mpsc::unbounded_channel();
    let _client = async_nats::ConnectOptions::new()
        .event_callback(move |event| {
            let events = events.clone();
            async move { drop(events.send(event)) }
        })
        .connect(server.url())
        .await
        .unwrap();
    await_event(&mut seen, &async_nats::Event::Connected).await;

    let pid = std::fs::read_to_string(server.pid_file()).unwrap();
    assert!(std::process::Command::new("kill").args(["-KILL", pid.trim()]).status().unwrap().success());
    await_event(&mut seen, &async_nats::Event::Disconnected).await;
    await_event(&mut seen, &async_nats::Event::Connected).await;

    assert_ne!(std::fs::read_to_string(server.pid_file()).unwrap(), pid);
    assert_eq!(stored_messages(server.url()).await, 1);
    server.stop().await;
}

#[tokio::test]
async fn a_program_that_is_no_server_or_too_old_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let program = data.path().join("nats-server");
    let absent = Binary::at(program.clone()).await.unwrap_err();
    assert!(matches!(absent, Error::NotRunnable { .. }), "{absent}");
    // `echo --version` answers, but not as a nats-server does.
    let stranger = Binary::at("/bin/echo".into()).await.unwrap_err();
    assert!(matches!(stranger, Error::UnknownVersion { .. }), "{stranger}");
}

async fn publish_one(url: &str) {
    let jetstream = jetstream::new(async_nats::connect(url).await.unwrap());
    let config = stream::Config { name: "kept".into(), subjects: vec!["kept.>".into()], ..Default::default() };
    jetstream.get_or_create_stream(config).await.unwrap();
    jetstream.publish("kept.one", "message".into()).await.unwrap().await.unwrap();
}

async fn stored_messages(url: &str) -> u64 {
    let jetstream = jetstream::new(async_nats::connect(url).await.unwrap());
    jetstream.get_stream("kept").await.unwrap().get_info().await.unwrap().state.messages
}

async fn await_event(seen: &mut mpsc::UnboundedReceiver<async_nats::Event>, wanted: &async_nats::Event) {
    let arrived = async {
        while let Some(event) = seen.recv().await {
            if event.to_string() == wanted.to_string() {
                return;
            }
        }
    };
    assert!(tokio::time::timeout(PATIENCE, arrived).await.is_ok(), "no event: {wanted}");
}

fn config_of(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("nats-server.conf")).unwrap()
}
