//! The nouns every other module speaks in: channels, conversation keys, envelopes, messages, replies, time.
//!
//! Refuses to know how anything is stored, sent or decided: this module imports nothing of ours.

mod address;
mod inbound;
mod outbound;
mod timestamp;
mod words;

pub use address::*;
pub use inbound::*;
pub use outbound::*;
pub use timestamp::Timestamp;
pub(crate) use words::words;
pub use words::*;

/// The version of [`Envelope`] and [`OutboundPart`] as written to the stream; carried in a header, so that a reader can
/// refuse what it does not understand before it decodes the body.
pub const SCHEMA_VERSION: u16 = 1;
