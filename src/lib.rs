//! Turnwise runs the conversations of high-volume chat bots: every message durable on NATS JetStream, every conversation's
//! turns strictly in order and one at a time, every turn persisted whole before its message is acknowledged.
//!
//! The list below is contents page, reading order and layering at once: a module imports only from modules above it
//! (`tests/architecture.rs` keeps it so).

pub mod message;

pub mod template;

pub mod config;

pub mod telemetry;

pub mod http;

pub mod model;

pub mod tool;

pub mod store;

pub mod channel;

pub mod platform;

pub mod stream;

pub mod cluster;

pub mod responder;

pub mod scheduler;

pub mod holds;

pub mod turn;

pub mod ingress;

pub mod egress;

pub mod audit;

pub mod dead_letters;

pub mod erasure;

pub mod console;

pub mod rebuild;

pub mod replay;

pub mod nats_server;

pub mod bench;

pub mod server;

pub mod cli;
