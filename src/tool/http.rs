//! Tools of kind `http`: one POST, and what its outcome says about whether the call happened.
//!
//! Refuses to try again and to follow redirects. Invariant: an error is `Retryable` only when it is known that nothing happened,
//! or that happening twice does no harm; no log holds an argument, a result or a header's value.

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, Url};
use serde_json::Value;
use time::OffsetDateTime;

use super::answer::{Quotes, refused};
use super::{Tool, ToolContext, ToolError, ToolPolicy, ToolSpec};
use crate::config;
use crate::http;
use crate::telemetry::chain;

/// Largest result kept: the rest is cut off, with a marker. What reaches the model is cut far shorter.
const RESULT_BYTES_MAX: usize = 1024 * 1024;

/// As much of a refusal as a quote can need.
const REFUSAL_BYTES_MAX: usize = 16 * 1024;

/// One `[tools.*]` table of kind `http`.
pub(super) struct HttpTool {
    client: Client,
    url: Url,
    headers: HeaderMap,
    quotes: Quotes,
    spec: ToolSpec,
    policy: ToolPolicy,
}

impl HttpTool {
    /// `None` when the address is none, which a configuration that was read cannot have.
    ///
    /// # Errors
    /// When the system has no CA certificates to check the server by.
    pub(super) fn new(
        name: &str,
        settings: &config::HttpTool,
        policy: ToolPolicy,
    ) -> Result<Option<Self>, reqwest::Error> {
        let Ok(url) = Url::parse(&settings.url) else { return Ok(None) };
        let spec = ToolSpec {
            name: name.to_owned(),
            description: settings.description.clone(),
            parameters: settings.parameters.clone(),
        };
        let quotes = Quotes::without(settings.headers.values());
        let (client, headers) = (http::client(&url)?, headers(&settings.headers));
        Ok(Some(Self { client, url, headers, quotes, spec, policy }))
    }

    async fn exchange(&self, context: &ToolContext, arguments: &Value) -> Result<Value, ToolError> {
        let mut call = self.client.post(self.url.clone()).headers(self.headers.clone()).json(arguments);
        call = call.header("idempotency-key", &context.idempotency_key);
        if let Some(traceparent) = &context.traceparent {
            call = call.header("traceparent", traceparent);
        }
        let response = call.send().await.map_err(without_answer)?;
        let status = response.status();
        let after = http::retry_after(response.headers(), OffsetDateTime::now_utc());
        if status.is_success() {
            return result(response).await;
        }
        // The status says enough, also when the explanation cannot be read.
        let body = read(response, REFUSAL_BYTES_MAX).await.map(|body| body.bytes).unwrap_or_default();
        let quote = self.quotes.quote(&String::from_utf8_lossy(&body));
        Err(refused(status.as_u16(), after, self.policy.effects, &quote))
    }
}

#[async_trait::async_trait]
impl Tool for HttpTool {
    fn spec(&self) -> ToolSpec {
        self.spec.clone()
    }

    fn policy(&self) -> ToolPolicy {
        self.policy
    }

    async fn call(&self, context: &ToolContext, arguments: Value) -> Result<Value, ToolError> {
        self.exchange(context, &arguments).await
    }
}

/// Configured headers, their values never shown.
pub(super) fn headers(configured: &std::collections::BTreeMap<String, config::Secret>) -> HeaderMap {
    let header = |(name, secret): (&String, &config::Secret)| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let mut value = HeaderValue::from_str(secret.expose()).ok()?;
        value.set_sensitive(true);
        Some((name, value))
    };
    configured.iter().filter_map(header).collect()
}

/// What a call that brought no answer means: nothing was sent when no connection was made; afterwards nobody can tell.
fn without_answer(error: reqwest::Error) -> ToolError {
    let not_sent = error.is_connect() || error.is_builder();
    let cause = chain(&error.without_url());
    match not_sent {
        true => ToolError::retryable(format!("the tool's server cannot be reached: {cause}")),
        false => ToolError::unknown(format!("the tool's server did not answer: {cause}")),
    }
}

/// The call has happened. JSON if the server says so and it is; else text.
async fn result(response: Response) -> Result<Value, ToolError> {
    let is_json = response.headers().get(CONTENT_TYPE).is_some_and(is_json);
    let body = read(response, RESULT_BYTES_MAX).await.map_err(|error| {
        ToolError::unknown(format!("the tool's server broke off its answer: {}", chain(&error.without_url())))
    })?;
    if is_json
        && !body.cut
        && let Ok(value) = serde_json::from_slice(&body.bytes)
    {
        return Ok(value);
    }
    let mut text = String::from_utf8_lossy(&body.bytes).into_owned();
    if body.cut {
        text.push_str(&format!("\n[cut off after {RESULT_BYTES_MAX} bytes]"));
    }
    Ok(Value::String(text))
}

/// `application/json`, and `application/problem+json` and its like (RFC 6839).
fn is_json(content_type: &HeaderValue) -> bool {
    let media_type = content_type.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    let media_type = media_type.trim().to_ascii_lowercase();
    media_type == "application/json" || media_type.ends_with("+json")
}

struct Body {
    bytes: Vec<u8>,
    /// Whether there was more.
    cut: bool,
}

async fn read(mut response: Response, bytes_max: usize) -> Result<Body, reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = bytes_max - bytes.len();
        bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            return Ok(Body { bytes, cut: true });
        }
    }
    Ok(Body { bytes, cut: false })
}
