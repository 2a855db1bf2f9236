//! What handlers take out of a request's address, refused in the one form that all errors have.
//!
//! Refuses to quote what it could not read. Invariant: no answer of the framework's own, which would be plain text, reaches
//! a caller from here.

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// The query string, of which unknown parameters are passed over.
pub(super) struct Parameters<T>(pub(super) T);

/// The one variable segment of the path.
pub(super) struct Segment(pub(super) String);

/// The two variable segments of the path.
pub(super) struct Segments(pub(super) String, pub(super) String);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Query(parameters) = Query::try_from_uri(&parts.uri).map_err(|_| {
            Problem::new(400, "malformed", "The query string cannot be read; each parameter may be given once.")
        })?;
        Ok(Self(parameters))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(segment) = Path::from_request_parts(parts, state).await.map_err(|_| malformed())?;
        Ok(Self(segment))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Segments {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path((first, second)) = Path::from_request_parts(parts, state).await.map_err(|_| malformed())?;
        Ok(Self(first, second))
    }
}

fn malformed() -> Problem {
    Problem::new(400, "malformed", "The address is not percent-encoded UTF-8.")
}
