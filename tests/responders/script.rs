//! The `script` responder: what rules do, and how a wrong file is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use turnwise::message::{Author, Button, Role};
use turnwise::responder::script::Script;
use turnwise::responder::{DEMO_SCRIPT, Reply, Responder, TurnContext, TurnError};
use uuid::Uuid;

use crate::{context, request, retryable, stored, terminal, text_of};

async fn play(script: &str, text: &str) -> Result<Reply, TurnError> {
    Script::parse("test.toml", script).unwrap().respond(&context(), &request(&[text])).await
}

#[tokio::test]
async fn script_answers_by_the_first_rule_that_matches() {
    let script = r#"
        [[rule]]
        pattern = '^(\w+) is (?<what>\w+)$'
        reply = "$what is what $1 is, for ${1}s; $$5 of \"$text\" $"
        [[rule]]
        pattern = "is"
        messages = ["first", "second"]
        buttons = [{ label = "Yes" }, { label = "No", payload = "n" }]
        handoff = true
        [[rule]]
        pattern = '(?i)SHOUT'
        reply = "$count, $attempt"
        metadata = { heard = "$text", times = 2, list = ["$attempt", true], deep = { half = 0.5 } }
        [[rule]]
        reply = "fallback"
    "#;
    let check = async |text: &str, expected: &[&str]| {
        assert_eq!(text_of(&play(script, text).await.unwrap()), expected, "{text}");
    };
    check("sky is blue", &["blue is what sky is, for skys; $5 of \"sky is blue\" $"]).await;
    check("this", &["first", "second"]).await;
    check("shout", &["1, 1"]).await;
    check("IS", &["fallback"]).await;

    let reply = play(script, "this").await.unwrap();
    assert!(reply.handoff);
    assert_eq!(reply.messages[0].buttons, []);
    let button = |label: &str, payload: &str| Button { label: label.to_owned(), payload: payload.to_owned() };
    assert_eq!(reply.messages[1].buttons, [button("Yes", "Yes"), button("No", "n")]);

    let metadata = Value::from(play(script, "shout").await.unwrap().metadata.unwrap());
    assert_eq!(metadata, json!({ "heard": "shout", "times": 2, "list": ["1", true], "deep": { "half": 0.5 } }));
}

#[tokio::test]
async fn script_reads_all_new_messages_the_history_and_metadata() {
    let script = r#"
        [[rule]]
        pattern = '(?s)one.*two'
        reply = "${metadata.name|friend}, ${metadata.age}, ${metadata.none|nobody}: $count"
    "#;
    let mut request = request(&["one", "two"]);
    request.history =
        vec![stored(1, Role::User, Author::User, "a"), stored(2, Role::Assistant, Author::Bot, "b")].into();
    request.conversation.metadata = json!({ "name": "Ada", "age": 36 }).as_object().unwrap().clone();
    let reply = Script::parse("test.toml", script).unwrap().respond(&context(), &request).await.unwrap();
    assert_eq!(text_of(&reply), ["Ada, 36, nobody: 3"]);
}

#[tokio::test]
async fn what_a_user_says_is_not_read_as_a_template() {
    let reply = play("[[rule]]\nreply = \"$text\"", "$attempt ${metadata.name}").await.unwrap();
    assert_eq!(text_of(&reply), ["$attempt ${metadata.name}"]);
}

#[tokio::test]
async fn script_without_a_matching_rule_fails_for_good() {
    let outcome = play("[[rule]]\npattern = \"a\"\nreply = \"b\"", "c").await;
    assert_eq!(outcome, Err(terminal("no rule matches; add one without a pattern at the end of the script")));
}

#[tokio::test]
async fn script_chooses_alternatives_by_turn_and_repeats_its_choice() {
    let script = Script::parse("test.toml", "[[rule]]\nreplies = [\"a\", \"b\", \"c\"]").unwrap();
    let mut counts = BTreeMap::<String, usize>::new();
    for turn in 0..300 {
        let context = TurnContext { turn_id: Uuid::from_u128(turn), ..context() };
        let chosen = script.respond(&context, &request(&["x"])).await.unwrap();
        let later = TurnContext { attempt: 2, ..context.clone() };
        assert_eq!(script.respond(&later, &request(&["x"])).await.unwrap(), chosen);
        *counts.entry(chosen.messages[0].content.clone()).or_default() += 1;
    }
    assert_eq!(counts.len(), 3);
    assert!(counts.values().all(|count| (70..130).contains(count)), "{counts:?}");
}

#[tokio::test]
async fn script_fails_as_told() {
    let script = r#"
        [[rule]]
        pattern = "twice"
        reply = "attempt $attempt"
        fail = "retryable"
        fail_times = 2
        error = "not yet"
        [[rule]]
        pattern = "never"
        fail = "terminal"
        [[rule]]
        reply = "fine"
        fail = "retryable"
        fail_ratio = 0.2
    "#;
    let script = Script::parse("test.toml", script).unwrap();
    let respond = async |text: &str, turn: u128, attempt: u32| {
        let context = TurnContext { turn_id: Uuid::from_u128(turn), attempt, ..context() };
        script.respond(&context, &request(&[text])).await
    };
    assert_eq!(respond("twice", 1, 1).await, Err(retryable("not yet")));
    assert_eq!(respond("twice", 1, 2).await, Err(retryable("not yet")));
    assert_eq!(respond("twice", 1, 3).await, Ok(Reply::text("attempt 3")));
    assert_eq!(respond("never", 1, 9).await, Err(terminal("the script says so")));
    let mut failed = 0;
    for turn in 0..500 {
        let outcome = respond("ratio", turn, 1).await;
        assert_eq!(respond("ratio", turn, 1).await, outcome);
        failed += usize::from(outcome.is_err());
    }
    assert!((70..130).contains(&failed), "{failed} of 500 failed");
}

#[tokio::test]
async fn script_delays_within_its_bounds_and_stops_when_told() {
    let script = "[[rule]]\npattern = \"short\"\nreply = \"x\"\ndelay = { min = \"20ms\", max = \"40ms\" }\n\
                  [[rule]]\nreply = \"y\"\ndelay = \"1h\"";
    let refused = Script::parse("test.toml", &script.replace("1h", "61m")).unwrap_err();
    assert_eq!((refused.line, refused.what.starts_with("delay: write a time up to an hour")), (7, true));
    let script = Script::parse("test.toml", &script.replace("1h", "60m")).unwrap();

    let started = Instant::now();
    script.respond(&context(), &request(&["short"])).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(20));

    let (stopped, long) = (context(), request(&["long"]));
    let (outcome, ()) = tokio::join!(script.respond(&stopped, &long), async { stopped.cancellation.cancel() });
    assert_eq!(outcome, Err(TurnError::Cancelled));

    let late = TurnContext { deadline: Instant::now() + Duration::from_millis(20), ..context() };
    assert_eq!(script.respond(&late, &long).await, Err(retryable("the turn's time ran out")));
}

#[test]
fn script_problems_name_the_line_and_the_remedy() {
    let check = |script: &str, line: usize, words: &str| {
        let error = Script::parse("bot.toml", script).unwrap_err();
        assert_eq!(error.line, line, "{error}\n{script}");
        assert!(error.what.contains(words), "{error}\n{script}");
        assert!(error.to_string().starts_with(&format!("bot.toml:{line}: ")));
    };
    check("", 1, "add a [[rule]]");
    check("[[rule]\n", 1, "expected");
    check("[[rules]]\nreply = \"x\"", 1, "expected `rule`");
    check("[[rule]]\nreply = \"x\"\n\n[[rule]]\nreplys = \"x\"", 5, "unknown field `replys`");
    check("[[rule]]\nreply = 5", 2, "expected a string");
    check("[[rule]]\nreply = \"x\"\nbuttons = [{ label = \"a\", url = \"b\" }]", 3, "unknown field `url`");
    check("[[rule]]\npattern = '('\nreply = \"x\"", 2, "unclosed group");
    check("[[rule]]\npattern = '(?=a)'\nreply = \"x\"", 2, "look-around");
    check("\n[[rule]]\npattern = 'a'", 2, "add reply, replies or messages");
    check("[[rule]]\nreply = \"x\"\nmessages = [\"y\"]", 1, "exclude each other");
    check("[[rule]]\nreplies = []", 2, "the list is empty");
    check("[[rule]]\nreplies = [\n\"a\",\n\" \"]", 4, "the text is empty");
    check("[[rule]]\npattern = '(a)'\nreply = \"$2\"", 3, "no group of the pattern");
    check("[[rule]]\npattern = '(a)'\nreply = \"${b}\"", 3, "no group of the pattern");
    check("[[rule]]\nreply = \"${text\"", 2, "write $$ for a dollar sign");
    check("[[rule]]\nreply = \"x\"\nmetadata = { a = \"$b\" }", 3, "metadata.a: \"$b\"");
    check("[[rule]]\nreply = \"x\"\ndelay = \"5\"", 3, "delay: write");
    check("[[rule]]\nreply = \"x\"\ndelay = { min = \"5s\", max = \"1s\" }", 3, "delay: write");
    check("[[rule]]\nfail = \"maybe\"", 2, "write \"retryable\" or \"terminal\"");
    check("[[rule]]\nreply = \"x\"\nfail_times = 1", 1, "need fail");
    check("[[rule]]\nfail = \"terminal\"\nfail_times = 1", 1, "add reply, replies or messages");
    check("[[rule]]\nfail = \"terminal\"\nreply = \"x\"\nfail_ratio = 2.0", 4, "outside 0.0 to 1.0");
    check("[[rule]]\nfail = \"terminal\"\nreply = \"x\"\nfail_ratio = 0.1\nfail_times = 1", 4, "exclude each other");
    check("[[rule]]\nreply = \"x\"\n[[rule]]\npattern = 'a'\nreply = \"y\"", 3, "can never match");
    let long = "x".repeat(65);
    check(&format!("[[rule]]\nreply = \"x\"\nbuttons = [{{ label = \"{long}\" }}]"), 3, "over 64 bytes");
}

#[tokio::test]
async fn the_demo_does_what_it_says() {
    let demo = Script::parse("demo.toml", DEMO_SCRIPT).unwrap();
    let check = async |text: &str, words: &str| {
        let reply = demo.respond(&context(), &request(&[text])).await.unwrap();
        assert!(text_of(&reply).join("\n").contains(words), "{text}: {reply:?}");
        reply
    };
    check("Hello", "demo bot").await;
    check("help", "what is turnwise").await;
    check("What is Turnwise?", "durable").await;
    check("How do you keep order?", "lane").await;
    check("What if you crash?", "NATS").await;
    check("who am I", "do not know yet").await;
    check("count", "1 message").await;
    check("something else", "something else").await;
    assert!(check("get me a human", "handed to a person").await.handoff);
    let named = check("hi, my name is Ada.", "Nice to meet you, Ada!").await;
    assert_eq!(Value::from(named.metadata.unwrap()), json!({ "name": "Ada" }));
    assert_eq!(demo.respond(&context(), &request(&["fail"])).await, Err(terminal("the demo was asked to fail")));
    assert_eq!(
        demo.respond(&context(), &request(&["flaky"])).await,
        Err(retryable("the demo was asked to fail twice"))
    );
    let third = TurnContext { attempt: 3, ..context() };
    assert!(demo.respond(&third, &request(&["flaky"])).await.is_ok());
    let (stopped, slow) = (context(), request(&["slow"]));
    let (outcome, ()) = tokio::join!(demo.respond(&stopped, &slow), async { stopped.cancellation.cancel() });
    assert_eq!(outcome, Err(TurnError::Cancelled));
}
