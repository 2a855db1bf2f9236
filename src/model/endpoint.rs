//! One model behind one address: slots, circuit breaker, the HTTP exchange with its timeouts, span and metrics.
//!
//! Refuses to retry and to know what either protocol's frames mean. Invariants: no error, log or span holds the API key,
//! the prompt or an answer; a slot is held for one call and no longer; a call that is dropped leaves slot and circuit
//! behind as if it had not been made.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{RequestBuilder, Response, Url};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::answer::{Answer, Reader};
use super::breaker::{Breaker, Opened, Permit, Verdict};
use super::failure::{self, Quoting};
use super::tokens::{self, Calibration, Counted};
use super::{Fault, Model, ModelCall, ModelFailure, ModelRequest, ModelResponse, anthropic, openai, whole_ms};
use crate::config::{ModelApi, ModelConfig, ResponderConfig};
use crate::http;
use crate::telemetry::metric;

/// How long a server may say nothing. Comments and pings are nothing: a proxy sends them for a server that hangs, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From the beginning of the call to the first event of the answer.
    pub first_event: Duration,
    /// Between two events.
    pub idle: Duration,
}

/// A minute covers the reading of a long prompt on modest hardware; a model that writes never pauses for half of that.
impl Default for Timeouts {
    fn default() -> Self {
        Self { first_event: Duration::from_secs(60), idle: Duration::from_secs(30) }
    }
}

/// Once the answer is complete only the token counts are missing, which come at once or never.
const USAGE_WAIT_MAX: Duration = Duration::from_secs(2);

/// Longest explanation read of an error.
const ERROR_MAX_BYTES: usize = 256 * 1024;

/// The model of one `[responders.*]` table.
#[derive(Debug)]
pub struct Endpoint {
    client: reqwest::Client,
    url: Url,
    key: Option<(HeaderName, HeaderValue)>,
    settings: ModelConfig,
    /// One call, from the first byte sent to the last received.
    timeout: Duration,
    timeouts: Timeouts,
    slots: Semaphore,
    breaker: Mutex<Breaker>,
    counts: Mutex<Counts>,
}

/// What has been learned from the token counts of the server.
#[derive(Debug, Default)]
struct Counts {
    calibration: Calibration,
    warned: bool,
}

/// A model that cannot be called as configured. No variant holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("the address is not one of http or https")]
    BaseUrl,
    #[error("the API key has characters that no HTTP header may hold")]
    ApiKey,
    #[error("cannot set up an HTTP client")]
    HttpClient(#[source] reqwest::Error),
}

impl Endpoint {
    /// # Errors
    /// As [`super::build`].
    pub fn new(shared: &ResponderConfig, settings: &ModelConfig, timeouts: Timeouts) -> Result<Self, BuildError> {
        let url = Url::parse(&address(settings))
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or(BuildError::BaseUrl)?;
        let key = settings.api_key.as_ref().map(|key| {
            let (name, text) = match settings.api {
                ModelApi::OpenAi => (AUTHORIZATION, format!("Bearer {}", key.expose())),
                ModelApi::Anthropic => (HeaderName::from_static("x-api-key"), key.expose().to_owned()),
            };
            let mut value = HeaderValue::from_str(&text).map_err(|_| BuildError::ApiKey)?;
            value.set_sensitive(true);
            Ok((name, value))
        });
        Ok(Self {
            client: http::client(&url).map_err(BuildError::HttpClient)?,
            url,
            key: key.transpose()?,
            settings: settings.clone(),
            timeout: shared.timeout,
            timeouts,
            slots: Semaphore::new(shared.max_concurrency.clamp(1, Semaphore::MAX_PERMITS)),
            breaker: Mutex::new(Breaker::new()),
            counts: Mutex::default(),
        })
    }

    /// One call, within its own time and the turn's, under one span.
    async fn call(
        &self,
        call: &ModelCall<'_>,
        request: &ModelRequest,
        admission: &Admission<'_>,
    ) -> Result<ModelResponse, ModelFailure> {
        let span = self.span(call);
        let started = Instant::now();
        let own_end = started + self.timeout;
        let exchange = self.exchange(call, request, admission, started).instrument(span.clone());
        let outcome = match timeout_at(own_end.min(call.deadline), exchange).await {
            Ok(outcome) => outcome,
            Err(_) if call.deadline < own_end => Err(ModelFailure::turn_over()),
            Err(_) => Err(ModelFailure::timeout(started.elapsed())),
        };
        let error_type = outcome.as_ref().err().map_or("", ModelFailure::error_type);
        metric::model_call(&self.settings.model, error_type, started.elapsed());
        if let Err(failure) = &outcome {
            span.record("error.type", failure.error_type());
            span.record("otel.status_code", "ERROR");
        }
        outcome
    }

    async fn exchange(
        &self,
        call: &ModelCall<'_>,
        request: &ModelRequest,
        admission: &Admission<'_>,
        started: Instant,
    ) -> Result<ModelResponse, ModelFailure> {
        let first_event_at_the_latest = started + self.timeouts.first_event;
        let sent = timeout_at(first_event_at_the_latest, self.post(request).send()).await;
        let response = sent
            .map_err(|_| ModelFailure::timeout(self.timeouts.first_event))?
            .map_err(|error| ModelFailure::transport(&error))?;
        Span::current().record("http.response.status_code", response.status().as_u16());
        if !response.status().is_success() {
            return Err(timeout_at(first_event_at_the_latest, self.server_error(response))
                .await
                .unwrap_or_else(|_| ModelFailure::timeout(self.timeouts.first_event)));
        }
        let after = retry_after(response.headers(), OffsetDateTime::now_utc());
        let read = self.read(call, admission, response, first_event_at_the_latest).await;
        let (answer, first_token) = read.map_err(|failure| match failure.fault {
            // An error inside an answer of status 200; its headers may still say how long to wait.
            Fault::Busy => ModelFailure { after, ..failure },
            _ => failure,
        })?;
        let first_token = first_token.map(|moment| moment.duration_since(started));
        self.record(&answer, first_token);
        if let Some(reported) = answer.usage.input_tokens {
            self.learn(tokens::of_request(request), reported);
        }
        Ok(ModelResponse {
            content: answer.content,
            tool_calls: answer.tool_calls,
            finish: answer.finish,
            usage: answer.usage,
            model: answer.model,
            response_id: answer.response_id,
            first_token_ms: first_token.map(whole_ms),
            duration_ms: whole_ms(started.elapsed()),
        })
    }

    fn post(&self, request: &ModelRequest) -> RequestBuilder {
        let body = match self.settings.api {
            ModelApi::OpenAi => openai::body(&self.settings, &self.url, request),
            ModelApi::Anthropic => anthropic::body(&self.settings, request),
        };
        let mut post = self.client.post(self.url.clone()).json(&body);
        if let Some((name, value)) = &self.key {
            post = post.header(name.clone(), value.clone());
        }
        match self.settings.api {
            ModelApi::OpenAi => post,
            ModelApi::Anthropic => post.header("anthropic-version", anthropic::VERSION),
        }
    }

    /// The answer, and when its first text or tool call came.
    async fn read(
        &self,
        call: &ModelCall<'_>,
        admission: &Admission<'_>,
        mut response: Response,
        first_event_at_the_latest: Instant,
    ) -> Result<(Answer, Option<Instant>), ModelFailure> {
        let mut reader = Reader::new(self.settings.api, self.quoting());
        let (mut first_token, mut moved) = (None, false);
        let mut at_the_latest = first_event_at_the_latest;
        loop {
            let chunk = match timeout_at(at_the_latest, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => break,
                // Nothing but the token counts can be missing.
                Ok(Err(_)) | Err(_) if reader.is_complete() => break,
                Ok(Err(error)) => return Err(ModelFailure::transport(&error)),
                Err(_) if moved => return Err(ModelFailure::silent(self.timeouts.idle)),
                Err(_) => return Err(ModelFailure::timeout(self.timeouts.first_event)),
            };
            let was_complete = reader.is_complete();
            let progress = reader.push(&chunk, call.on_delta)?;
            if progress.over {
                break;
            }
            let now = Instant::now();
            if first_token.is_none() && reader.has_begun() {
                first_token = Some(now);
                admission.begun();
            }
            if reader.is_complete() && !was_complete {
                at_the_latest = now + self.timeouts.idle.min(USAGE_WAIT_MAX);
            } else if progress.moved && !was_complete {
                (moved, at_the_latest) = (true, now + self.timeouts.idle);
            }
        }
        let answer = reader.end(call.on_delta)?;
        let begun = !answer.content.is_empty() || !answer.tool_calls.is_empty();
        Ok((answer, first_token.or_else(|| begun.then(Instant::now))))
    }

    /// What an error answer means; its status says enough, also when the explanation cannot be read.
    async fn server_error(&self, mut response: Response) -> ModelFailure {
        let status = response.status().as_u16();
        let after = retry_after(response.headers(), OffsetDateTime::now_utc());
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await {
            if body.len() + chunk.len() > ERROR_MAX_BYTES {
                body.clear();
                break;
            }
            body.extend_from_slice(&chunk);
        }
        let body = serde_json::from_slice::<Value>(&body).ok();
        failure::classify(status, body.as_ref(), after, &self.quoting())
    }

    fn quoting(&self) -> Quoting {
        Quoting { key: self.settings.api_key.clone() }
    }

    /// Leave to call, by the circuit breaker.
    fn admit(&self, call: &ModelCall<'_>) -> Result<Admission<'_>, ModelFailure> {
        let admitted = lock(&self.breaker).admit(call.conversation_id, Instant::now());
        let permit = admitted.map_err(ModelFailure::circuit_open)?;
        Ok(Admission { endpoint: self, permit, verdict: Verdict::Unknown })
    }

    fn settle(&self, permit: Permit, verdict: Verdict) {
        let opened = lock(&self.breaker).settle(permit, verdict, Instant::now());
        if let Some(Opened(pause)) = opened {
            tracing::warn!(
                model = %self.settings.model,
                server = self.url.host_str(),
                pause_ms = whole_ms(pause),
                "calls to the model server are suspended: it failed repeatedly, or asked for a pause"
            );
        }
    }

    fn learn(&self, estimated: u64, reported: u64) {
        let mut counts = lock(&self.counts);
        if counts.calibration.observe(estimated, reported) == Counted::Capped
            && !std::mem::replace(&mut counts.warned, true)
        {
            tracing::warn!(
                model = %self.settings.model,
                server = self.url.host_str(),
                estimated_tokens = estimated,
                counted_tokens = reported,
                "the model server counts far fewer tokens than were sent: it may cut long prompts silently; \
                 raise its context (Ollama: OLLAMA_CONTEXT_LENGTH), or lower history.tokens"
            );
        }
    }

    fn span(&self, call: &ModelCall<'_>) -> Span {
        let settings = &self.settings;
        tracing::info_span!(
            "chat",
            otel.name = %format_args!("chat {}", settings.model),
            otel.kind = "client",
            otel.status_code = Empty,
            gen_ai.operation.name = "chat",
            gen_ai.provider.name = settings.api.as_str(),
            gen_ai.request.model = %settings.model,
            gen_ai.request.temperature = settings.temperature,
            gen_ai.request.max_tokens = settings.max_output_tokens,
            gen_ai.request.stream = true,
            gen_ai.conversation.id = %call.conversation_id,
            gen_ai.response.model = Empty,
            gen_ai.response.id = Empty,
            gen_ai.response.finish_reasons = Empty,
            gen_ai.response.time_to_first_chunk = Empty,
            gen_ai.usage.input_tokens = Empty,
            gen_ai.usage.output_tokens = Empty,
            server.address = self.url.host_str(),
            server.port = self.url.port_or_known_default(),
            http.response.status_code = Empty,
            "error.type" = Empty,
            turnwise.turn.id = %call.turn_id,
            turnwise.attempt = call.attempt,
        )
    }

    /// Writes what an answer says about itself onto the span of its call, and counts its tokens.
    fn record(&self, answer: &Answer, first_token: Option<Duration>) {
        let span = Span::current();
        span.record("gen_ai.response.model", answer.model.as_deref());
        span.record("gen_ai.response.id", answer.response_id.as_deref());
        span.record("gen_ai.response.finish_reasons", answer.reason.as_str());
        span.record("gen_ai.response.time_to_first_chunk", first_token.map(|first| first.as_secs_f64()));
        let used = [
            ("gen_ai.usage.input_tokens", "input", answer.usage.input_tokens),
            ("gen_ai.usage.output_tokens", "output", answer.usage.output_tokens),
        ];
        for (name, token_type, tokens) in used {
            if let Some(tokens) = tokens {
                span.record(name, tokens);
                metric::model_tokens(&self.settings.model, token_type, tokens);
            }
        }
    }
}

#[async_trait::async_trait]
impl Model for Endpoint {
    async fn complete(&self, call: &ModelCall<'_>, request: &ModelRequest) -> Result<ModelResponse, ModelFailure> {
        // Closed never: the semaphore lives as long as `self`.
        let Ok(_slot) = timeout_at(call.deadline, self.slots.acquire()).await else {
            return Err(ModelFailure::turn_over());
        };
        let mut admission = self.admit(call)?;
        let outcome = self.call(call, request, &admission).await;
        admission.verdict = verdict(&outcome, call.deadline);
        outcome
    }

    fn describe(&self) -> Value {
        json!({
            "provider": self.settings.api.as_str(),
            "base_url": self.settings.base_url,
            "model": self.settings.model,
            "temperature": self.settings.temperature,
            "max_output_tokens": self.settings.max_output_tokens,
        })
    }

    fn estimate_tokens(&self, request: &ModelRequest) -> u64 {
        lock(&self.counts).calibration.apply(tokens::of_request(request))
    }
}

/// A call that the breaker let through: it learns the outcome when this is dropped, whichever way the call ends.
struct Admission<'a> {
    endpoint: &'a Endpoint,
    permit: Permit,
    verdict: Verdict,
}

impl Admission<'_> {
    fn begun(&self) {
        lock(&self.endpoint.breaker).begun(self.permit);
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.endpoint.settle(self.permit, self.verdict);
    }
}

/// What an outcome says about the provider. A call that the turn's deadline ended says nothing: it may have had no time.
fn verdict(outcome: &Result<ModelResponse, ModelFailure>, deadline: Instant) -> Verdict {
    match outcome {
        Err(failure) if failure.fault == Fault::Timeout && deadline <= Instant::now() => Verdict::Unknown,
        Err(failure) if failure.is_retryable() => {
            let wait = failure.after.filter(|_| matches!(failure.status, Some(429 | 503 | 529)));
            Verdict::Failing { wait }
        }
        _ => Verdict::Alive,
    }
}

/// Where requests go. `/v1` is part of the address with OpenAI's API, and not with Anthropic's; some write it there, too.
fn address(settings: &ModelConfig) -> String {
    let base = &settings.base_url;
    match settings.api {
        ModelApi::OpenAi => format!("{base}/chat/completions"),
        ModelApi::Anthropic => format!("{}/v1/messages", base.strip_suffix("/v1").unwrap_or(base)),
    }
}

/// `Retry-After` as RFC 9110, 10.2.3, has it: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: OffsetDateTime) -> Option<Duration> {
    failure::parse_retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?, now)
}

/// Held for a few instructions that cannot panic.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
