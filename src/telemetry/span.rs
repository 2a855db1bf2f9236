//! The closed list of span names, one turn being one trace: dashboards and alerts are built on these words.
//!
//! Refuses to hold attributes or logic. Invariant: a span of this program has a name from here, or one composed as its
//! comment says and given as the field `otel.name`; how they hang together is in `tests/traces.rs`.

/// SERVER, composed: `POST /webhooks/{channel}/{bot}`, the method and the route's template, never the path as requested.
pub const HTTP_REQUEST: &str = "http request";
/// PRODUCER: an inbound message is published.
pub const SEND_IN: &str = "send turnwise.in";
/// INTERNAL, backdated: from the stream's time of the message to its first delivery.
pub const STREAM_WAIT: &str = "turnwise.stream.wait";
/// INTERNAL, backdated: from delivery to the start of the turn; linked to the turn that held the lane.
pub const LANE_WAIT: &str = "turnwise.lane.wait";
/// CONSUMER: one attempt of one turn; child of and linked to its [`SEND_IN`].
pub const PROCESS_IN: &str = "process turnwise.in";
/// INTERNAL, composed: `invoke_agent {responder}`.
pub const INVOKE_AGENT: &str = "invoke_agent";
/// CLIENT, composed: `chat {model}`; one per attempt.
pub const CHAT: &str = "chat";
/// INTERNAL, composed: `execute_tool {tool}`.
pub const EXECUTE_TOOL: &str = "execute_tool";
/// CLIENT: the turn's transaction.
pub const COMMIT: &str = "COMMIT turn";
/// CLIENT, a root: the transaction that several turns share; it and their [`COMMIT`] are linked both ways.
pub const COMMIT_GROUP: &str = "COMMIT group";
/// CLIENT: the stream is told that the message is done.
pub const ACK_IN: &str = "ack turnwise.in";
/// CONSUMER: one part of a reply is taken up for delivery.
pub const PROCESS_OUT: &str = "process turnwise.out";
/// INTERNAL, backdated: the wait that the platform's rate limit asks for.
pub const EGRESS_WAIT: &str = "turnwise.egress.wait";
/// CLIENT: one attempt at the platform, or at a responder's service.
pub const POST: &str = "POST";
/// INTERNAL, a root: a recorded turn asked of another responder, linked to the turn's own [`PROCESS_IN`].
pub const REPLAY: &str = "replay turn";
