//! A collector of traces that speaks both of OTLP's protocols, and reading the spans it was sent.
//!
//! Refuses to judge spans. Invariant: everything sent before an exporter was shut down is there to be taken afterwards.

use std::collections::BTreeMap;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};

pub(crate) struct Collector {
    pub(crate) endpoint: String,
    received: mpsc::UnboundedReceiver<Vec<ResourceSpans>>,
}

impl Collector {
    /// OTLP over HTTP, as protobuf.
    pub(crate) async fn http() -> Self {
        let (spans, received) = mpsc::unbounded_channel();
        let take = move |headers: HeaderMap, body: Bytes| async move {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            let request = ExportTraceServiceRequest::decode(body).unwrap();
            spans.send(request.resource_spans).unwrap();
            StatusCode::OK
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let service = Router::new().route("/v1/traces", post(take));
        tokio::spawn(async move { axum::serve(listener, service).await });
        Self { endpoint, received }
    }

    /// OTLP over gRPC.
    pub(crate) async fn grpc() -> Self {
        Self::serve("http", Server::builder()).await
    }

    /// The same over TLS, with this certificate and key in PEM.
    pub(crate) async fn grpc_over_tls(certificate: &str, key: &str) -> Self {
        let identity = Identity::from_pem(certificate, key);
        Self::serve("https", Server::builder().tls_config(ServerTlsConfig::new().identity(identity)).unwrap()).await
    }

    async fn serve(scheme: &str, mut server: Server) -> Self {
        let (spans, received) = mpsc::unbounded_channel();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("{scheme}://{}", listener.local_addr().unwrap());
        let server = server.add_service(TraceServiceServer::new(Service { spans }));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        Self { endpoint, received }
    }

    /// What has come since it was last asked, with what says who sent it.
    pub(crate) fn batches(&mut self) -> Vec<ResourceSpans> {
        let mut batches = Vec::new();
        while let Ok(batch) = self.received.try_recv() {
            batches.extend(batch);
        }
        batches
    }

    /// The spans alone.
    pub(crate) fn spans(&mut self) -> Vec<Span> {
        let scopes = self.batches().into_iter().flat_map(|resource| resource.scope_spans);
        scopes.flat_map(|scope| scope.spans).collect()
    }
}

struct Service {
    spans: mpsc::UnboundedSender<Vec<ResourceSpans>>,
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.spans.send(request.into_inner().resource_spans).unwrap();
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// The spans as an indented tree, children by name, then time; with kinds.
pub(crate) fn tree(spans: &[Span]) -> Vec<String> {
    const KINDS: [&str; 6] = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"];
    fn below(parent: &[u8], depth: usize, children: &BTreeMap<&[u8], Vec<&Span>>, lines: &mut Vec<String>) {
        let mut spans = children.get(parent).cloned().unwrap_or_default();
        spans.sort_by(|left, right| {
            (&left.name, left.start_time_unix_nano).cmp(&(&right.name, right.start_time_unix_nano))
        });
        for span in spans {
            let kind = KINDS[usize::try_from(span.kind).unwrap()];
            lines.push(format!("{}{} {kind}", "  ".repeat(depth), span.name));
            below(&span.span_id, depth + 1, children, lines);
        }
    }
    let mut children: BTreeMap<&[u8], Vec<&Span>> = BTreeMap::new();
    for span in spans {
        children.entry(&span.parent_span_id).or_default().push(span);
    }
    let mut lines = Vec::new();
    below(&[], 0, &children, &mut lines);
    assert_eq!(lines.len(), spans.len(), "every parent is exported: {lines:?}");
    lines
}

/// The attribute as text; empty when there is none.
pub(crate) fn text(span: &Span, name: &str) -> String {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == name);
    match attribute.and_then(|attribute| attribute.value.clone()?.value) {
        None => String::new(),
        Some(AnyValue::StringValue(text)) => text,
        Some(AnyValue::BoolValue(truth)) => truth.to_string(),
        Some(AnyValue::IntValue(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
    }
}
