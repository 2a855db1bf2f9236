//! The tools of a deployment: looked up by name, arguments checked, MCP servers kept.
//!
//! Refuses to wait for a server that is away: its tools are absent until it is there. Invariant: whatever [`Toolbox::get`]
//! gives is traced, counted and bounded in time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::catalogue::{Catalogue, Entry};
use super::http::HttpTool;
use super::mcp::McpSessions;
use super::schema::{Schema, SchemaError};
use super::watched::Watched;
use super::{Effects, Tool, ToolPolicy, ToolSpec};
use crate::config::{Config, ToolConfig, ToolKind};

/// How long a start waits for MCP servers. One that is not there by then is waited for in the background.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// A child is asked to end, told to, and killed, some three seconds apart.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// A tool that cannot be built. No variant holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("tools.{name}: also registered in Rust; rename one of the two")]
    Doubled { name: String },
    #[error("the tool \"{name}\" is registered twice in Rust; rename one of the two")]
    RegisteredTwice { name: String },
    #[error("the tool {name:?} has a name that model APIs refuse; use 1 to 64 of A-Z a-z 0-9 _ -")]
    Name { name: String },
    #[error(
        "the tool \"{name}\" has arguments without a usable schema; derive JsonSchema for a struct with named fields"
    )]
    Schema {
        name: String,
        #[source]
        source: SchemaError,
    },
    #[error("tools.{name}.url: not an address; write one like https://shop.example.com/orders")]
    Url { name: String },
    #[error("tools.{name}: cannot set up an HTTP client; check that the system's CA certificates are installed")]
    HttpClient {
        name: String,
        #[source]
        source: reqwest::Error,
    },
}

/// The tools of a deployment. Clones share everything; when the last one goes, the MCP servers do, too.
#[derive(Clone)]
pub struct Toolbox {
    shared: Arc<Shared>,
}

struct Shared {
    catalogue: Arc<Catalogue>,
    servers: Vec<Arc<McpSessions>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl std::fmt::Debug for Toolbox {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Toolbox").finish_non_exhaustive()
    }
}

impl Toolbox {
    /// The tools of the configuration and those registered in Rust. Contacts nobody: see [`Toolbox::connect`].
    ///
    /// # Errors
    /// Every problem found, never none.
    pub fn build(config: &Config, registered: Vec<Arc<dyn Tool>>) -> Result<Self, Vec<BuildError>> {
        Self::assemble(&config.tools, registered)
    }

    /// Tools in Rust alone.
    ///
    /// # Errors
    /// Every problem found, never none.
    pub fn of(registered: Vec<Arc<dyn Tool>>) -> Result<Self, Vec<BuildError>> {
        Self::assemble(&BTreeMap::new(), registered)
    }

    fn assemble(
        configured: &BTreeMap<String, ToolConfig>,
        registered: Vec<Arc<dyn Tool>>,
    ) -> Result<Self, Vec<BuildError>> {
        let (mut entries, mut servers, mut errors) = (BTreeMap::new(), Vec::new(), Vec::new());
        for tool in registered {
            match registered_tool(tool, configured) {
                Ok((name, entry)) => {
                    if entries.insert(name.clone(), entry).is_some() {
                        errors.push(BuildError::RegisteredTwice { name });
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        for (name, settings) in configured {
            match &settings.kind {
                ToolKind::Http(http) => match http_tool(name, settings, http) {
                    Ok(entry) => drop(entries.insert(name.clone(), entry)),
                    Err(error) => errors.push(error),
                },
                ToolKind::Mcp(server) => match McpSessions::new(name, settings, server) {
                    Ok(Some(server)) => servers.push(Arc::new(server)),
                    Ok(None) => errors.push(BuildError::Url { name: name.clone() }),
                    Err(source) => errors.push(BuildError::HttpClient { name: name.clone(), source }),
                },
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let catalogue = Arc::new(Catalogue::new(entries));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        Ok(Self { shared: Arc::new(Shared { catalogue, servers, stop, tasks }) })
    }

    /// Connects to the MCP servers, or starts them, and keeps them from now on. Returns when each has answered or failed once,
    /// at the latest after 10 s. To be called once.
    pub async fn connect(&self) {
        let Shared { catalogue, servers, stop, tasks } = &*self.shared;
        for server in servers {
            tasks.spawn(Arc::clone(server).keep(Arc::clone(catalogue), stop.clone(), tasks.clone()));
        }
        let tried = futures_util::future::join_all(servers.iter().map(|server| server.tried()));
        // What is not there by then is logged by its keeper.
        let _ = tokio::time::timeout(START_PATIENCE, tried).await;
    }

    /// Ends every session and child; returns after at most 10 s.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(STOP_PATIENCE, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("some MCP servers did not end in time");
        }
    }

    /// A tool by the name that [`Toolbox::specs`] gave it. Whether a responder may use it is the caller's to check.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<dyn Tool>> {
        self.shared.catalogue.view().get(name).map(|entry| Arc::clone(&entry.tool))
    }

    /// The tools behind the names that a responder lists as `tools`, in that order. The name of an MCP server stands for all
    /// that it offers now: none while it has not been there yet.
    #[must_use]
    pub fn specs(&self, names: &[String]) -> Vec<ToolSpec> {
        self.shared.catalogue.view().specs(names)
    }

    /// Arguments as a model wrote them, parsed strictly and checked against the tool's schema; nothing at all counts as `{}`.
    ///
    /// # Errors
    /// A sentence for the model, of at most some 2,000 characters.
    pub fn validate(&self, name: &str, arguments: &str) -> Result<Value, String> {
        let view = self.shared.catalogue.view();
        let shown: String = name.chars().take(64).collect();
        let entry = view.get(name).ok_or_else(|| format!("There is no tool {shown:?}."))?;
        entry.schema.validate(arguments)
    }
}

/// What a table says, with what is known of the tool's effects where it does not say any.
pub(super) fn policy(settings: &ToolConfig, otherwise: Effects) -> ToolPolicy {
    let default = ToolPolicy::of(settings.effects.unwrap_or(otherwise));
    ToolPolicy {
        effects: default.effects,
        confirm: settings.confirm,
        on_unknown: settings.on_unknown.unwrap_or(default.on_unknown),
        timeout: settings.timeout,
        cancel_safe: settings.cancel_safe.unwrap_or(default.cancel_safe),
    }
}

fn registered_tool(
    tool: Arc<dyn Tool>,
    configured: &BTreeMap<String, ToolConfig>,
) -> Result<(String, Entry), BuildError> {
    let name = tool.spec().name;
    if configured.contains_key(&name) {
        return Err(BuildError::Doubled { name });
    }
    let entry = entry(&name, "function", tool)?;
    Ok((name, entry))
}

fn http_tool(name: &str, settings: &ToolConfig, http: &crate::config::HttpTool) -> Result<Entry, BuildError> {
    let policy = policy(settings, Effects::Destructive);
    let tool = HttpTool::new(name, http, policy)
        .map_err(|source| BuildError::HttpClient { name: name.to_owned(), source })?
        .ok_or_else(|| BuildError::Url { name: name.to_owned() })?;
    entry(name, "extension", Arc::new(tool))
}

fn entry(name: &str, kind: &'static str, inner: Arc<dyn Tool>) -> Result<Entry, BuildError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
        return Err(BuildError::Name { name: name.to_owned() });
    }
    let spec = inner.spec();
    let schema =
        Schema::compile(&spec.parameters).map_err(|source| BuildError::Schema { name: name.to_owned(), source })?;
    let tool = Arc::new(Watched { name: name.to_owned(), kind, inner });
    Ok(Entry { tool, spec, schema: Arc::new(schema) })
}
