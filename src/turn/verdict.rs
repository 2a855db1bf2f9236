//! How an attempt at a turn ends before its commit, and what trouble from outside means for it.

use std::time::Duration;

use crate::message::{Envelope, SCHEMA_VERSION};
use crate::scheduler::{Failure, Verdict};
use crate::store::{Committed, StoreError};
use crate::stream::StreamMessage;
use crate::telemetry::{chain, json_fault};

/// A step's value, or how the attempt ends here.
pub(super) type Step<T> = Result<T, Box<Verdict<Committed>>>;

pub(super) fn decode(message: &StreamMessage) -> Step<Envelope> {
    if message.schema_version.is_some_and(|version| version > SCHEMA_VERSION) {
        return Err(hopeless("undecodable", "the message was written by a newer version".to_owned()));
    }
    let envelope: Envelope = serde_json::from_slice(&message.payload)
        .map_err(|error| hopeless("undecodable", format!("the message is not an envelope: {}", json_fault(&error))))?;
    // The platform's own words are for people and later versions; they need not lie in memory twice.
    Ok(Envelope { raw: None, ..envelope })
}

pub(super) fn hopeless(reason: &'static str, error: String) -> Box<Verdict<Committed>> {
    Box::new(Verdict::Hopeless(Failure { reason, error, user_message: None }))
}

pub(super) fn failed(reason: &'static str, error: String, after: Option<Duration>) -> Box<Verdict<Committed>> {
    Box::new(Verdict::Failed { failure: Failure { reason, error, user_message: None }, after })
}

/// The database knows a newer owner; or it is away, and the message not to blame; or it refuses this message's data, and then it is.
pub(super) fn away(error: &StoreError) -> Box<Verdict<Committed>> {
    if matches!(error, StoreError::Fenced) {
        Box::new(Verdict::Fenced)
    } else if error.is_transient() {
        Box::new(Verdict::Wait { cause: chain(error), after: None })
    } else {
        failed("store", chain(error), None)
    }
}
