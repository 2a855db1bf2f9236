//! Errors as RFC 9457 problem details: `application/problem+json` with type, title, status, detail and, for input, the
//! fields at fault.
//!
//! Refuses to quote what it was sent: a detail never holds a token or a message.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

/// An error (RFC 9457).
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Problem {
    /// What programs may compare: `urn:turnwise:problem:` and a word.
    r#type: String,
    title: String,
    status: u16,
    /// For people.
    detail: String,
    /// The fields at fault.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    #[serde(skip)]
    retry_after_seconds: Option<u32>,
}

/// What is wrong with one field of the body, query parameter or header: its name and a sentence.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct FieldError {
    field: String,
    detail: String,
}

impl Problem {
    /// `kind` is the last part of the problem's type, which programs may compare.
    pub(crate) fn new(status: u16, kind: &str, detail: impl Into<String>) -> Self {
        let title = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        Self {
            r#type: format!("urn:turnwise:problem:{kind}"),
            title: title.unwrap_or("Error").to_owned(),
            status,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after_seconds: None,
        }
    }

    /// A problem with one named field.
    pub(crate) fn field(status: u16, field: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let mut problem = Self::new(status, "invalid-request", format!("{field}: {detail}"));
        problem.errors.push(FieldError { field: field.to_owned(), detail });
        problem
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "unauthorized", "This needs the header `Authorization: Bearer KEY` with a key of the bot.")
    }

    pub(crate) const fn status(&self) -> u16 {
        self.status
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    pub(crate) const fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_string(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
