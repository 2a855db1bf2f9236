//! A bot in one file: a responder in Rust and a tool, on a server of its own.
//!
//!     cargo run --example shop                    SQLite, a nats-server child, http://127.0.0.1:8080/
//!     cargo run --example shop -- turnwise.toml   the bots of that file; `responder = "shop"` is this one
//!
//! The shop sells what its catalogue has. An order is asked for with `order PRODUCT`; prices come from somewhere slow, so each
//! is asked for once a turn, whatever happens to the process meanwhile.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use turnwise::responder::{Reply, Responder, TurnContext, TurnError, TurnRequest};
use turnwise::server::Server;
use turnwise::tool::{Effects, ToolContext, ToolError, TypedTool};

const CONFIG: &str = r#"
[nats]
managed = true

[bots.web]
channel = "web"
responder = "shop"
"#;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let builder = Server::builder().responder("shop", Shop).tool(Price);
    let builder = match std::env::args().nth(1) {
        Some(file) => builder.config_file(file),
        None => builder.config_text(CONFIG),
    };
    builder.build()?.run().await
}

/// Takes orders. It holds nothing: what has to last is in the conversation's metadata.
struct Shop;

#[async_trait::async_trait]
impl Responder for Shop {
    async fn respond(&self, context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError> {
        let Some(message) = request.messages.last() else { return Ok(Reply::default()) };
        let text = message.message.text.trim().to_lowercase();
        let orders = request.conversation.metadata.get("orders").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if text.contains("human") {
            return Ok(Reply { handoff: true, ..Reply::text("A colleague will be with you.") });
        }
        let Some(product) = text.strip_prefix("order ") else {
            return Ok(Reply::text(format!("You have {orders} orders. Say \"order tea\" for another one.")));
        };
        context.deltas.send("Looking it up...");
        // Kept in the turn's journal: an attempt that follows a crash finds the price and does not ask again.
        let price = context.step("price", async { Ok(price_of(product).await) }).await?;
        let Some(cents) = price else { return Ok(Reply::text(format!("We have no {product}."))) };
        let metadata = Map::from_iter([("orders".to_owned(), json!(orders + 1))]);
        let said = format!("One {product} for {}.{:02}, as you wish.", cents / 100, cents % 100);
        Ok(Reply { metadata: Some(metadata), ..Reply::text(said) })
    }
}

/// The same knowledge for a model: a responder of kind `openai` or `anthropic` with `tools = ["price"]` may call it.
struct Price;

#[derive(Deserialize, JsonSchema)]
struct Product {
    /// Its name, in lower case.
    name: String,
}

#[derive(Serialize)]
struct Cents {
    cents: Option<u32>,
}

impl TypedTool for Price {
    type Args = Product;
    type Output = Cents;

    fn name(&self) -> &str {
        "price"
    }

    fn description(&self) -> &str {
        "Tells what a product costs, or null when the shop does not have it."
    }

    fn effects(&self) -> Effects {
        Effects::ReadOnly
    }

    async fn call(&self, _context: &ToolContext, product: Product) -> Result<Cents, ToolError> {
        Ok(Cents { cents: price_of(&product.name).await })
    }
}

/// In a real shop, a request to a service.
async fn price_of(product: &str) -> Option<u32> {
    match product {
        "tea" => Some(450),
        "coffee" => Some(520),
        _ => None,
    }
}
