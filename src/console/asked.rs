//! What handlers take out of a request: who asks, in which form the answer is wanted, and of an action what it says.
//!
//! Refuses an action that a page of another site could have sent: it needs this site's origin and the token that forms carry,
//! unless it shows a token itself. Invariant: no handler runs for somebody who has not shown a token, but in `turnwise dev`,
//! where this machine's own pages need none.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use subtle::ConstantTimeEq as _;
use url::form_urlencoded;

use super::session::{COOKIE, Role, Who};
use super::{Console, page};
use crate::ingress::Problem;
use crate::message::Timestamp;

/// A form's longest text is one message; more than enough for that and some fields.
const FORM_BYTES_MAX: usize = 64 * 1024;

/// As for other bodies: slower than any network, faster than a slow-drip attack.
const FORM_TIMEOUT: Duration = Duration::from_secs(10);

/// The field of a form that says that it came from a page of ours.
pub(super) const FORM_TOKEN: &str = "form_token";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Html,
    Json,
    /// Told of changes until the caller leaves.
    Events,
}

/// A request to look at something.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) who: Who,
    pub(super) format: Format,
    /// The address, without its host.
    pub(super) place: String,
    query: BTreeMap<String, String>,
}

impl Asked {
    /// A parameter of the query that says something.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// A parameter that is one of a set of words.
    ///
    /// # Errors
    /// 422 that names the parameter.
    pub(super) fn word<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Problem> {
        let word = self.parameter(name).map(str::parse);
        word.transpose().map_err(|_| Problem::field(422, name, "is none of the words that are known here."))
    }
}

impl FromRequestParts<Arc<Console>> for Asked {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, console: &Arc<Console>) -> Result<Self, Response> {
        let format = format(parts);
        let place = parts.uri.path_and_query().map_or("/console", |place| place.as_str()).to_owned();
        let who = match console.who(&parts.headers) {
            Ok(who) => who,
            Err(refusal) if format == Format::Html => return Err(page::refused(&refusal, &place)),
            Err(refusal) => return Err(refusal.problem().into_response()),
        };
        let query = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        let query: BTreeMap<String, String> = query.into_owned().collect();
        // PostgreSQL has no text with it, SQLite has; nobody types it.
        if let Some((name, _)) = query.iter().find(|(_, value)| value.contains('\0')) {
            return Err(page::problem(format, Problem::field(422, name, "must not have the character NUL.")));
        }
        Ok(Self { who, format, place, query })
    }
}

fn format(parts: &Parts) -> Format {
    let accept = parts.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accept.starts_with("text/event-stream") {
        Format::Events
    } else if parts.uri.path().ends_with(".json") || (accept.contains("json") && !accept.contains("text/html")) {
        Format::Json
    } else {
        Format::Html
    }
}

/// Why somebody may not come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No token is configured.
    Closed,
    SignIn,
}

impl Refusal {
    pub(super) fn problem(self) -> Problem {
        match self {
            Self::Closed => Problem::new(403, "closed", "The console has no token: set console.token."),
            Self::SignIn => {
                Problem::new(401, "unauthorized", "This needs the header `Authorization: Bearer TOKEN` of the console.")
            }
        }
    }
}

impl Console {
    /// Who comes with these headers.
    pub(super) fn who(&self, headers: &HeaderMap) -> Result<Who, Refusal> {
        if self.is_open && is_local(headers) {
            return Ok(Who { role: Role::Operator, name: None, form_token: None });
        }
        if self.tokens.is_empty() {
            return Err(Refusal::Closed);
        }
        let text = |name| headers.get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
        if let Some(token) = text(header::AUTHORIZATION).and_then(|value| value.split_once(' ')) {
            let role = self.tokens.role_of(token.1.trim()).filter(|_| token.0.eq_ignore_ascii_case("bearer"));
            return role.map(|role| Who { role, name: None, form_token: None }).ok_or(Refusal::SignIn);
        }
        let cookies = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let cookie = pairs.find(|(name, _)| *name == COOKIE);
        cookie.and_then(|(_, value)| self.tokens.read(value, Timestamp::now())).ok_or(Refusal::SignIn)
    }
}

/// Whether a program of this machine asks for this machine by its own name: a page of another site can have its name lead
/// here, and a proxy would bring the world.
fn is_local(headers: &HeaderMap) -> bool {
    let is_forwarded = ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip"];
    if is_forwarded.iter().any(|name| headers.contains_key(*name)) {
        return false;
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let name = name.map_or(host, |(name, _)| name);
    let address: Option<IpAddr> = name.trim_matches(['[', ']']).parse().ok();
    name == "localhost" || address.is_some_and(|address| address.is_loopback())
}

/// A request to do something, by somebody who may.
#[derive(Debug)]
pub(super) struct Action {
    pub(super) who: Who,
    pub(super) format: Format,
    fields: BTreeMap<String, String>,
}

impl Action {
    /// A field that says something.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// Refuses an action that says more than is understood, which would do less or more than was meant.
    ///
    /// # Errors
    /// 422 that names the first field that is none of these.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), Problem> {
        let mut names = self.fields.keys().map(String::as_str);
        let unknown = names.find(|name| *name != FORM_TOKEN && !known.contains(name));
        unknown.map_or(Ok(()), |name| {
            let detail = format!("is not known here; there are {}.", known.join(", "));
            Err(Problem::field(422, name, detail))
        })
    }

    /// # Errors
    /// 422 that names the field.
    pub(super) fn required(&self, name: &str) -> Result<&str, Problem> {
        self.field(name).ok_or_else(|| Problem::field(422, name, "must be given."))
    }
}

impl FromRequest<Arc<Console>> for Action {
    type Rejection = Response;

    async fn from_request(request: Request, console: &Arc<Console>) -> Result<Self, Response> {
        let (parts, body) = request.into_parts();
        let format = format(&parts);
        let refuse = |problem: Problem| page::problem(format, problem);
        let who = console.who(&parts.headers).map_err(|refusal| refuse(refusal.problem()))?;
        if who.role != Role::Operator {
            return Err(refuse(Problem::new(403, "read-only", "This token may look and change nothing.")));
        }
        let is_from_browser = !parts.headers.contains_key(header::AUTHORIZATION);
        if is_from_browser && !is_same_origin(&parts.headers) {
            return Err(refuse(Problem::new(403, "foreign-origin", "Only the console's own pages may do this.")));
        }
        let body = whole(body, FORM_BYTES_MAX).await.map_err(refuse)?;
        let fields = fields(&parts.headers, &body).map_err(refuse)?;
        if let Some(expected) = who.form_token.as_ref().filter(|_| is_from_browser) {
            let shown = fields.get(FORM_TOKEN).map(String::as_bytes).unwrap_or_default();
            if !bool::from(shown.ct_eq(expected.as_bytes())) {
                return Err(refuse(Problem::new(
                    403,
                    "stale-form",
                    "The form is of an earlier session. Load the page again.",
                )));
            }
        }
        Ok(Self { who, format, fields })
    }
}

/// A browser says which page a form came from; one that says nothing is none that could be trusted to.
pub(super) fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
    if text(header::HeaderName::from_static("sec-fetch-site")).is_some_and(|site| site != "same-origin") {
        return false;
    }
    let origin = text(header::ORIGIN).and_then(|origin| origin.split_once("://"));
    origin.zip(text(header::HOST)).is_some_and(|((_, authority), host)| authority == host)
}

/// What a form holds, if it comes in time and is no longer than allowed.
pub(super) async fn whole(body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    match tokio::time::timeout(FORM_TIMEOUT, axum::body::to_bytes(body, bytes_max)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) | Err(_) => Err(Problem::new(413, "too-large", "The form is too large, or did not arrive whole.")),
    }
}

/// A form, or a JSON object of strings.
pub(super) fn fields(headers: &HeaderMap, body: &Bytes) -> Result<BTreeMap<String, String>, Problem> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.starts_with("application/json") {
        return serde_json::from_slice(body)
            .map_err(|_| Problem::new(400, "malformed", "The body must be a JSON object whose values are strings."));
    }
    Ok(form_urlencoded::parse(body).into_owned().collect())
}

/// Where somebody goes who is sent away to sign in, and back afterwards: a place of the console only.
pub(super) fn own_place(place: Option<&str>) -> &str {
    place
        .filter(|place| *place == "/console" || place.starts_with("/console/") || place.starts_with("/console?"))
        .unwrap_or("/console")
}

/// To another page, by GET.
pub(super) fn go_to(place: &str) -> Response {
    (StatusCode::SEE_OTHER, [(header::LOCATION, place.to_owned())]).into_response()
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_form_that_never_ends_is_not_waited_for() {
        let begun = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"token="))]);
        let dripping = Body::from_stream(begun.chain(futures_util::stream::pending()));
        assert_eq!(whole(dripping, 64).await.unwrap_err().status(), 413);
        assert_eq!(whole(Body::from("token=much-too-long"), 4).await.unwrap_err().status(), 413);
        assert_eq!(whole(Body::from("token=a"), 64).await.unwrap(), "token=a");
    }

    #[test]
    fn only_a_page_of_the_same_host_counts_as_ours() {
        for (pairs, expected) in [
            (&[("host", "desk:8080"), ("origin", "http://desk:8080")][..], true),
            (&[("host", "desk"), ("origin", "https://desk"), ("sec-fetch-site", "same-origin")], true),
            (&[("host", "desk"), ("origin", "https://desk"), ("sec-fetch-site", "cross-site")], false),
            (&[("host", "desk:8080"), ("origin", "http://desk:9090")], false),
            (&[("host", "desk"), ("origin", "null")], false),
            (&[("host", "desk")], false),
        ] {
            assert_eq!(is_same_origin(&headers(pairs)), expected, "{pairs:?}");
        }
    }

    #[test]
    fn only_this_machine_by_its_own_name_is_local() {
        for (pairs, expected) in [
            (&[("host", "127.0.0.1:8080")][..], true),
            (&[("host", "localhost")], true),
            (&[("host", "[::1]:8080")], true),
            (&[("host", "rebound.example:8080")], false),
            (&[("host", "localhost"), ("x-forwarded-for", "203.0.113.9")], false),
            (&[], false),
        ] {
            assert_eq!(is_local(&headers(pairs)), expected, "{pairs:?}");
        }
    }

    #[test]
    fn after_signing_in_one_stays_here() {
        assert_eq!(own_place(Some("/console/turns/1?a=b")), "/console/turns/1?a=b");
        for foreign in [Some("https://example.com/console"), Some("//example.com"), Some("/consoles"), None] {
            assert_eq!(own_place(foreign), "/console", "{foreign:?}");
        }
    }
}
