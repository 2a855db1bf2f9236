//! Pages of other sites that talk to `/v1/*`: the answers' headers and the browser's question beforehand, as
//! <https://fetch.spec.whatwg.org/#http-cors-protocol> has them.
//!
//! Refuses every origin that no web bot lists, and cookies in any case: callers show keys in a header. Invariant: this
//! decides only whether a browser hands an answer to a page; which bot a page may talk to is [`super::access`]'s to say.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::Ingress;
use super::access::{as_web, foreign_origin};

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PATCH");
const REQUEST_HEADERS: HeaderValue =
    HeaderValue::from_static("Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer");
const EXPOSED_HEADERS: HeaderValue = HeaderValue::from_static("Location, Retry-After, Preference-Applied");

/// Seconds for which a browser need not ask again: the longest that any of them keeps is two hours (Chromium).
const MAX_AGE_SECONDS: HeaderValue = HeaderValue::from_static("7200");

const EVERY_ANSWER: [(HeaderName, HeaderValue); 1] = [(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS)];
const PREFLIGHT: [(HeaderName, HeaderValue); 3] = [
    (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS),
    (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_SECONDS),
];

/// Answers preflight requests, and marks the answers that a listed origin's page may read.
pub(super) async fn allow(State(ingress): State<Arc<Ingress>>, request: Request, next: Next) -> Response {
    if !request.uri().path().starts_with("/v1/") {
        return next.run(request).await;
    }
    let origin = request.headers().get(header::ORIGIN).filter(|origin| ingress.lists(origin)).cloned();
    let preflight = is_preflight(&request);
    let mut response = match (preflight, &origin) {
        (true, Some(_)) => (StatusCode::NO_CONTENT, PREFLIGHT).into_response(),
        (true, None) => foreign_origin().into_response(),
        (false, _) => next.run(request).await,
    };
    mark(response.headers_mut(), origin, preflight);
    response
}

fn mark(headers: &mut HeaderMap, origin: Option<HeaderValue>, preflight: bool) {
    headers.append(header::VARY, HeaderValue::from_name(header::ORIGIN));
    let Some(origin) = origin else { return };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    if !preflight {
        headers.extend(EVERY_ANSWER);
    }
}

fn is_preflight(request: &Request) -> bool {
    let headers = request.headers();
    request.method() == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

impl Ingress {
    /// Whether some web bot lists the origin.
    fn lists(&self, origin: &HeaderValue) -> bool {
        let mut origins = self.bots.values().filter_map(as_web).flat_map(|web| &web.origins);
        origins.any(|listed| listed.as_bytes() == origin.as_bytes())
    }
}
