//! Trace context between processes and hops, as the W3C `traceparent` of <https://www.w3.org/TR/trace-context/>.
//!
//! Refuses to judge where a `traceparent` came from: the caller hands over only those that this deployment wrote, never one
//! from an outside webhook. Invariant: a malformed one is as good as none, and nothing here fails.

use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, TraceContextExt, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::SdkTracer;
use tracing::{Dispatch, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::registry::{LookupSpan as _, SpanData as _};
use tracing_subscriber::{Layer, Registry};

use crate::message::Timestamp;

/// The header's name, in NATS messages as in HTTP.
const TRACEPARENT: &str = "traceparent";

/// A stretch of time that is already over: `tracing` cannot backdate a span, and a wait is known only when it ends.
#[derive(Debug)]
pub struct Wait<'a> {
    /// One of [`super::span`].
    pub name: &'static str,
    pub parent: &'a str,
    pub start: Timestamp,
    pub end: Timestamp,
    /// The trace context of what was waited for, such as the turn that held the lane.
    pub link: Option<&'a str>,
    pub attributes: Vec<KeyValue>,
}

/// Writes the span's context into the headers of a message about to be published.
pub fn inject(headers: &mut async_nats::HeaderMap, span: &Span) {
    if let Some(traceparent) = current_traceparent(span) {
        headers.insert(TRACEPARENT, traceparent.as_str());
    }
}

/// The trace context a message carries; `None` when it has none or a malformed one.
#[must_use]
pub fn extract(headers: &async_nats::HeaderMap) -> Option<String> {
    let traceparent = headers.get(TRACEPARENT)?.as_str();
    parse(traceparent).map(|_| traceparent.to_owned())
}

/// The span's context as a `traceparent`, to be stored or sent; `None` when [`super::init`] was not called or the span is
/// filtered out. Starts the span: [`set_parent`] comes before.
#[must_use]
pub fn current_traceparent(span: &Span) -> Option<String> {
    span_context(span).map(|context| {
        let sampled = u8::from(context.is_sampled());
        format!("00-{}-{}-{sampled:02x}", context.trace_id(), context.span_id())
    })
}

/// The span's trace id, 32 hexadecimal digits; `None` as for [`current_traceparent`].
#[must_use]
pub fn trace_id(span: &Span) -> Option<String> {
    span_context(span).map(|context| context.trace_id().to_string())
}

/// Makes the span a child of a span of another process or hop. Only before the span is entered, or its context is read:
/// later it changes nothing.
pub fn set_parent(span: &Span, traceparent: Option<&str>) {
    let Some(parent) = traceparent.and_then(parse) else { return };
    if let Some(()) = naming(span, |registry, id| take_name(registry, id, Some(&parent)).map(drop)) {
        return;
    }
    if let Err(error) = span.set_parent(Context::new().with_remote_span_context(parent)) {
        // A missing or filtering subscriber is how a program that does not trace looks; only the order of calls is news.
        tracing::trace!(error = %error, "a span keeps the parent it has");
    }
}

/// Links the span to one of another trace: related, but not its cause.
pub fn link(span: &Span, traceparent: &str) {
    if let (None, Some(context)) = (naming(span, |_, _| Some(())), parse(traceparent)) {
        span.add_link(context);
    }
}

/// Puts an attribute on the exported span alone: the log, which shows a line's span with its fields, does not have it.
pub fn set_attribute(span: &Span, name: &'static str, value: String) {
    if naming(span, |_, _| Some(())).is_none() {
        span.set_attribute(name, value);
    }
}

/// Records a wait that is over, as a child of its parent; does nothing when the parent is malformed, and exports
/// nothing when it is not sampled.
pub fn record_wait(wait: &Wait<'_>) {
    tracing::dispatcher::get_default(|subscriber| {
        let Some(Backdating { tracer }) = subscriber.downcast_ref::<Backdating>() else { return };
        let Some(parent) = parse(wait.parent) else { return };
        let links = wait.link.and_then(parse).map(|context| Link::new(context, Vec::new(), 0));
        let mut span = SpanBuilder::from_name(wait.name)
            .with_kind(SpanKind::Internal)
            .with_start_time(system_time(wait.start))
            .with_attributes(wait.attributes.clone())
            .with_links(links.into_iter().collect())
            .start_with_context(tracer, &Context::new().with_remote_span_context(parent));
        span.end_with_timestamp(system_time(wait.end.max(wait.start)));
    });
}

/// The tracer, kept in the subscriber so that [`record_wait`] finds it where spans are recorded, and nothing is global. As a
/// layer it observes nothing.
#[derive(Debug)]
pub(super) struct Backdating {
    tracer: SdkTracer,
}

impl Backdating {
    pub(super) const fn new(tracer: SdkTracer) -> Self {
        Self { tracer }
    }
}

impl<S: Subscriber> Layer<S> for Backdating {}

/// Stands in for the tracer where no traces are exported: spans are only named, and only those whose name is asked for. As a
/// layer it observes nothing; [`current_traceparent`] and [`set_parent`] do the work when they find it.
#[derive(Debug)]
pub(super) struct Naming;

impl<S: Subscriber> Layer<S> for Naming {}

/// Does something with a span where spans are only named; `None` elsewhere.
fn naming<T>(span: &Span, work: impl FnOnce(&Registry, &tracing::Id) -> Option<T>) -> Option<T> {
    let found = span.with_subscriber(|(id, subscriber): (&tracing::Id, &Dispatch)| {
        subscriber.downcast_ref::<Naming>()?;
        work(subscriber.downcast_ref::<Registry>()?, id)
    });
    found.flatten()
}

/// The span's name, given now if it has none: it keeps to the trace of `parent`, else to that of the span around it.
fn take_name(registry: &Registry, id: &tracing::Id, parent: Option<&SpanContext>) -> Option<SpanContext> {
    let span = registry.span_data(id)?;
    if let Some(name) = span.extensions().get::<SpanContext>() {
        return Some(name.clone());
    }
    let around = || take_name(registry, span.parent()?, None).map(|name| name.trace_id());
    let trace = parent.map(SpanContext::trace_id).or_else(around);
    let trace = trace.unwrap_or_else(|| TraceId::from_bytes(rand::random()));
    let own = SpanId::from_bytes(rand::random());
    let name = SpanContext::new(trace, own, TraceFlags::NOT_SAMPLED, false, TraceState::NONE);
    span.extensions_mut().replace(name.clone());
    Some(name)
}

fn span_context(span: &Span) -> Option<SpanContext> {
    if let Some(name) = naming(span, |registry, id| take_name(registry, id, None)) {
        return Some(name);
    }
    let context = span.context();
    let span_context = context.span().span_context().clone();
    span_context.is_valid().then_some(span_context)
}

/// Version 00 as <https://www.w3.org/TR/trace-context/#traceparent-header> has it, which is all that this deployment writes. Every
/// message is read several times, and the SDK's propagator makes a context around each.
fn parse(traceparent: &str) -> Option<SpanContext> {
    let is_lower_hex = |text: &&str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let mut fields = traceparent.strip_prefix("00-")?.split('-');
    let mut field = |length: usize| fields.next().filter(is_lower_hex).filter(|field| field.len() == length);
    let (trace, span, flags) = (field(32)?, field(16)?, field(2)?);
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let context = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    (context.is_valid() && fields.next().is_none()).then_some(context)
}

fn system_time(moment: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(moment.micros_since(Timestamp::from_micros(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_contexts_are_taken_from_headers() {
        let check = |value: &str, taken: bool| {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert(TRACEPARENT, value);
            assert_eq!(extract(&headers), taken.then(|| value.to_owned()), "{value}");
        };
        check("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", true);
        check("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", true);
        check("00-00000000000000000000000000000000-b7ad6b7169203331-01", false);
        check("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", false);
        check("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false);
        check("00-0af7651916cd43dd8448eb211c80319c", false);
        check("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-", false);
        check("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false);
        check("", false);
        assert_eq!(extract(&async_nats::HeaderMap::new()), None);
    }

    #[test]
    fn without_a_subscriber_there_is_no_context() {
        let span = Span::none();
        let mut headers = async_nats::HeaderMap::new();
        inject(&mut headers, &span);
        assert_eq!((current_traceparent(&span), trace_id(&span), extract(&headers)), (None, None, None));
    }
}
