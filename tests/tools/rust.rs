//! Tools in Rust code: schemas made from types, and names.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use turnwise::tool::{
    Effects, OnUnknown, Tool, ToolContext, ToolError, ToolPolicy, ToolSpec, Toolbox, TypedTool, boxed,
};

use crate::{call, failed, names, unknown};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
enum Way {
    Post { express: bool },
    Pickup { shop: String },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Order {
    /// Article number.
    sku: String,
    count: u8,
    way: Option<Way>,
    #[serde(default)]
    notes: Vec<String>,
    price: f64,
    ids: std::collections::BTreeMap<String, i64>,
}

/// Repeats what it is told, or does what the article number says.
struct Echo;

impl TypedTool for Echo {
    type Args = Order;
    type Output = Order;

    fn name(&self) -> &str {
        "order"
    }

    fn description(&self) -> &str {
        "Orders."
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(200)
    }

    async fn call(&self, _: &ToolContext, order: Order) -> Result<Order, ToolError> {
        if order.sku == "never" {
            std::future::pending::<()>().await;
        }
        Ok(order)
    }
}

fn toolbox() -> Toolbox {
    Toolbox::of(vec![boxed(Echo)]).unwrap()
}

#[tokio::test]
async fn a_typed_tool_is_a_tool() {
    let tools = toolbox();
    let tool = tools.get("order").unwrap();
    let policy = ToolPolicy { timeout: Duration::from_millis(200), ..ToolPolicy::of(Effects::Destructive) };
    assert_eq!(tool.policy(), policy);
    assert_eq!((policy.on_unknown, policy.confirm, policy.cancel_safe), (OnUnknown::Fail, false, false));
    let spec = tool.spec();
    assert_eq!((spec.name.as_str(), spec.description.as_str()), ("order", "Orders."));
    assert_eq!(spec.parameters["properties"]["sku"], json!({ "type": "string", "description": "Article number." }));
    assert!(!spec.parameters.to_string().contains("$ref"), "{}", spec.parameters);
    assert_eq!(names(&tools, &["order", "nothing", "order"]), ["order"]);

    let order = r#"{"sku": "a", "count": 2, "way": {"kind": "post", "express": true}, "price": 1.5, "ids": {}}"#;
    let echoed = call(&tools, "order", order).await.unwrap();
    assert_eq!(echoed["way"], json!({ "kind": "post", "express": true }));
    let never = order.replace(r#""a""#, r#""never""#);
    assert_eq!(call(&tools, "order", &never).await, unknown("the tool did not answer within 200 ms"));
    let unfit = tool.call(&crate::context(), json!({ "sku": 1 })).await;
    assert_eq!(unfit, failed("the arguments do not fit: invalid type: integer `1`, expected a string"));
    let late = ToolContext { deadline: tokio::time::Instant::now(), ..crate::context() };
    let late = tool.call(&late, json!({})).await;
    assert_eq!(late, crate::retryable("the turn's time ran out before the tool was called", None));
}

struct Named(&'static str, Value);

#[async_trait::async_trait]
impl Tool for Named {
    fn spec(&self) -> ToolSpec {
        ToolSpec { name: self.0.to_owned(), description: String::new(), parameters: self.1.clone() }
    }

    fn policy(&self) -> ToolPolicy {
        ToolPolicy::of(Effects::ReadOnly)
    }

    async fn call(&self, _: &ToolContext, arguments: Value) -> Result<Value, ToolError> {
        Ok(arguments)
    }
}

/// A tool that takes anything.
pub(crate) fn named(name: &'static str) -> Arc<dyn Tool> {
    Arc::new(Named(name, json!({ "type": "object" })))
}

#[test]
fn names_and_schemas_are_checked() {
    let text = Arc::new(Named("d", json!({ "type": "string" })));
    let errors = Toolbox::of(vec![named("a"), named("a"), named("b c"), text]);
    let errors: Vec<String> = errors.unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(
        errors,
        [
            r#"the tool "a" is registered twice in Rust; rename one of the two"#,
            r#"the tool "b c" has a name that model APIs refuse; use 1 to 64 of A-Z a-z 0-9 _ -"#,
            r#"the tool "d" has arguments without a usable schema; derive JsonSchema for a struct with named fields"#,
        ]
    );
    assert_eq!(toolbox().validate("other", "{}").unwrap_err(), r#"There is no tool "other"."#);
}

fn any_json() -> impl Strategy<Value = Value> {
    let key = "(sku|count|way|kind|express|notes|price|ids|[a-z]{1,3})";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn any_order() -> impl Strategy<Value = Order> {
    let way = prop_oneof![
        any::<bool>().prop_map(|express| Way::Post { express }),
        ".{0,9}".prop_map(|shop| Way::Pickup { shop }),
    ];
    let rest =
        (prop::collection::vec(".{0,9}", 0..4), -1e9..1e9, prop::collection::btree_map(".{0,4}", any::<i64>(), 0..4));
    (".{0,9}", any::<u8>(), prop::option::of(way), rest).prop_map(|(sku, count, way, (notes, price, ids))| Order {
        sku,
        count,
        way,
        notes,
        price,
        ids,
    })
}

proptest! {
    #[test]
    fn any_text_is_answered(text in "\\PC{0,64}") {
        if let Err(told) = toolbox().validate("order", &text) {
            prop_assert!(told.chars().count() < 2_000, "{}", told);
        }
    }

    #[test]
    fn any_json_is_answered(value in any_json()) {
        let text = value.to_string();
        match toolbox().validate("order", &text) {
            // What the schema takes, the type takes, too.
            Ok(taken) => prop_assert!(serde_json::from_value::<Order>(taken).is_ok(), "{}", text),
            Err(told) => prop_assert!(told.chars().count() < 2_000, "{}", told),
        }
    }

    #[test]
    fn what_a_type_writes_its_schema_takes(order in any_order()) {
        let text = serde_json::to_string(&order).unwrap();
        let taken = toolbox().validate("order", &text);
        prop_assert!(taken.is_ok(), "{}: {:?}", text, taken);
        prop_assert_eq!(serde_json::from_value::<Order>(taken.unwrap()).unwrap(), order);
    }
}
