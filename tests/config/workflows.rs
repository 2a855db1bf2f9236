//! What is said of workflows: keys, nodes that lead nowhere or are never reached, conditions that go round.

use turnwise::config::{Accepts, Condition, Node, Scalar, Subject, Test as Operator};

use crate::{check, read};

/// `nodes` is behind the line 4 of a workflow that starts in `a`; `n.` stands for the nodes' table.
#[track_caller]
fn nodes(nodes: &str, expected: &[&str]) {
    let table = nodes.replace("[n.", "[workflows.w.nodes.");
    let expected: Vec<String> = expected.iter().map(|line| line.replace(" n.", " workflows.w.nodes.")).collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    check(&format!("[workflows.w]\nversion = 1\nstart = \"a\"\n{table}"), &expected);
}

#[test]
fn a_whole_workflow() {
    let config = read(
        r#"
        [workflows.w]
        version = 7
        start = "a"
        fallback = "d"
        [workflows.w.nodes.a]
        kind = "ask"
        text = "Which?"
        choices = ["One", { label = "Two", value = "2" }]
        save_as = "which"
        next = "b"
        else = "c"
        [workflows.w.nodes.b]
        kind = "condition"
        rules = [
            { all = [{ value = "text", exists = true }, { not = { any = [{ value = "metadata.a.b", in = ["x", 1, true] }] } }], next = "c" },
            { value = "metadata.n", at_least = 1, less_than = 2.5, next = "d" },
        ]
        else = "d"
        nodes = 1
        "#
        .replace("        nodes = 1\n", "[workflows.w.nodes]\nc.kind = \"handoff\"\nd.kind = \"end\"\n")
        .as_str(),
    );
    let workflow = &config.workflows["w"];
    assert_eq!((workflow.version, workflow.start.as_str(), workflow.fallback.as_deref()), (7, "a", Some("d")));
    let Node::Ask(ask) = &workflow.nodes["a"] else { panic!("it asks") };
    let check = ask.check.as_ref().unwrap();
    let Accepts::Choices(choices) = &check.accepts else { panic!("it has choices") };
    let choices: Vec<_> = choices.iter().map(|choice| (choice.label.as_str(), choice.payload.as_str())).collect();
    assert_eq!((choices, check.max_attempts), (vec![("One", "One"), ("Two", "2")], 3));
    let Node::Condition { rules, otherwise } = &workflow.nodes["b"] else { panic!("it decides") };
    assert_eq!((rules.len(), otherwise.as_str()), (2, "d"));
    let list = vec![Scalar::Text("x".to_owned()), Scalar::Number(1.0), Scalar::Flag(true)];
    let deep = Condition::Value { subject: Subject::Metadata("a.b".to_owned()), tests: vec![Operator::In(list)] };
    let text = Condition::Value { subject: Subject::Text, tests: vec![Operator::Exists(true)] };
    assert_eq!(rules[0].condition, Condition::All(vec![text, Condition::Not(Box::new(Condition::Any(vec![deep])))]));
    let tests = vec![Operator::LessThan(2.5), Operator::AtLeast(1.0)];
    assert_eq!(rules[1].condition, Condition::Value { subject: Subject::Metadata("n".to_owned()), tests });
    assert_eq!(workflow.nodes["c"], Node::Handoff { text: None });
}

#[test]
fn the_table_itself() {
    check(
        "[workflows.w]\nstrat = \"a\"",
        &[
            "1 workflows.w.version: is missing in [workflows.w]; write a whole number from 1 to 1000000",
            "1 workflows.w.start: is missing in [workflows.w]; write the name of a node",
            "1 workflows.w.nodes: is missing in [workflows.w]; add a table [workflows.w.nodes.NODE], and name it as start",
            r#"2 workflows.w.strat: unknown key; did you mean "start"?"#,
        ],
    );
    check(
        "[workflows.\"a b\"]\nversion = 0\nstart = \"a\"\n[workflows.\"a b\".nodes.\"a/c\"]\nkind = \"end\"",
        &[
            r#"1 workflows."a b": the name has the character ' '; use 1 to 64 characters of A-Z a-z 0-9 _ -"#,
            r#"2 workflows."a b".version: 0 is out of range; write a whole number from 1 to 1000000"#,
            r#"3 workflows."a b".start: there is no node "a"; nodes here: a/c"#,
            r#"4 workflows."a b".nodes."a/c": the name has the character '/'; use 1 to 64 characters of A-Z a-z 0-9 _ -"#,
        ],
    );
    check(
        "[responders.echo]\nkind = \"echo\"\nworkflow = \"intke\"\n[workflows.intake]\nversion = 1\nstart = \"a\"\nnodes.a.kind = \"end\"",
        &[r#"3 responders.echo.workflow: there is no workflow "intke"; did you mean "intake"? Workflows here: intake"#],
    );
}

#[test]
fn nodes_that_lead_nowhere_or_are_never_reached() {
    nodes(
        r#"[n.a]
kind = "respond"
text = "Hello"
next = "bb"
[n.b]
kind = "ask"
text = "?"
save_as = "x"
[n.c]
kind = "condition"
rules = [{ value = "text", exists = true, next = "gone" }]
[n.d]
kind = "respond""#,
        &[
            r#"7 n.a.next: there is no node "bb"; did you mean "b"? Nodes here: a, b, c, d"#,
            "8 n.b.next: is missing in [workflows.w.nodes.b]; write the name of a node",
            "12 n.c.else: is missing in [workflows.w.nodes.c]; write the name of a node",
            r#"14 n.c.rules[0].next: there is no node "gone"; nodes here: a, b, c, d"#,
            "15 n.d.next: is missing in [workflows.w.nodes.d]; write the name of a node",
        ],
    );
    nodes(
        r#"[n.a]
kind = "respond"
next = "a"
[n.b]
kind = "respond"
text = "I talk to c."
next = "c"
[n.c]
kind = "end""#,
        &[
            "7 n.b: nothing leads here; name it as start, fallback, next or else, or remove it",
            "11 n.c: nothing leads here; name it as start, fallback, next or else, or remove it",
        ],
    );
}

#[test]
fn conditions_that_go_round() {
    let condition = |name: &str, next: &str, otherwise: &str| {
        format!(
            "[n.{name}]\nkind = \"condition\"\nrules = [{{ value = \"text\", exists = true, next = \"{next}\" }}]\nelse = \"{otherwise}\"\n"
        )
    };
    nodes(
        &(condition("a", "b", "stop")
            + &condition("b", "c", "stop")
            + &condition("c", "stop", "a")
            + "[n.stop]\nkind = \"end\""),
        &["4 n.a: goes round for ever: a -> b -> c -> a; let the way back lead over an ask or respond node"],
    );
    nodes(
        &(condition("a", "a", "b") + &condition("b", "a", "c") + "[n.c]\nkind = \"respond\"\nnext = \"b\""),
        &[
            "4 n.a: goes round for ever: a -> a; let the way back lead over an ask or respond node",
            "8 n.b: goes round for ever: b -> a -> b; let the way back lead over an ask or respond node",
        ],
    );
    nodes(&(condition("a", "b", "b") + "[n.b]\nkind = \"respond\"\ntext = \"x\"\nnext = \"a\""), &[]);
}

#[test]
fn questions() {
    let rest = "\nsave_as = \"x\"\nnext = \"a\"";
    nodes(
        &format!("[n.a]\nkind = \"ask\"\ntext = \"?\"\nretry_text = \"!\"\nmax_attempts = 2\nelse = \"a\"{rest}"),
        &[
            "7 n.a.retry_text: has no meaning where every answer is taken; add pattern or choices, or remove it",
            "8 n.a.max_attempts: has no meaning where every answer is taken; add pattern or choices, or remove it",
            "9 n.a.else: has no meaning where every answer is taken; add pattern or choices, or remove it",
        ],
    );
    nodes(
        &format!(
            "[n.a]\nkind = \"ask\"\npattern = \"(\"\nmax_attempts = 11{}",
            rest.replace("\"x\"", "\"workflow_state\"")
        ),
        &[
            "4 n.a.text: is missing in [workflows.w.nodes.a]; write 1 to 16000 characters",
            "4 n.a.else: is missing in [workflows.w.nodes.a]; write the name of a node",
            "6 n.a.pattern: is no pattern: unclosed group; write a pattern in the syntax of the Rust regex crate, without look-around",
            "7 n.a.max_attempts: 11 is out of range; write a whole number from 1 to 10",
            "8 n.a.save_as: holds the workflow's own place; choose another key",
        ],
    );
    let right = "write 1 to 13 labels, or tables { label = \"...\", value = \"...\" }";
    nodes(
        &format!(
            "[n.a]\nkind = \"ask\"\ntext = \"${{name}}\"\nelse = \"a\"\nchoices = [\"a\", 1, {{ label = \"A\" }},\n\"{}\", \"A\"]{rest}",
            "x".repeat(21)
        ),
        &[
            "6 n.a.text: \"$name\" is no reference; write $text, $attempt, $count, ${metadata.KEY}, or $$ for a dollar sign",
            &format!("8 n.a.choices[1]: is an integer; {right}"),
            "8 n.a.choices[2].value: is missing in [workflows.w.nodes.a.choices[2]]; write 1 to 64 bytes",
            "9 n.a.choices[3]: has 21 characters; write 1 to 20 characters",
            "9 n.a.choices[4]: stands there twice; give each choice a label and a value of its own",
        ],
    );
    nodes(
        &format!("[n.a]\nkind = \"ask\"\ntext = \"?\"\npattern = \"x\"\nchoices = [\"a\"]\nelse = \"a\"{rest}"),
        &["8 n.a.choices: stands beside pattern; keep one of them"],
    );
}

#[test]
fn keys_of_other_kinds() {
    nodes(
        "[n.a]\nkind = \"respond\"\ntext = \"x\"\nprompt = \"y\"\nnext = \"a\"\nsave_as = \"x\"\nelse = \"a\"\nrules = []",
        &[
            "7 n.a.prompt: stands beside text; keep text, to say just that, or prompt, to let the responder answer",
            "9 n.a.save_as: belongs to nodes of kind \"ask\"; remove it",
            "10 n.a.else: belongs to nodes of kind \"ask\" or \"condition\"; remove it",
            "11 n.a.rules: belongs to nodes of kind \"condition\"; remove it",
        ],
    );
    nodes(
        "[n.a]\nkind = \"handof\"\ntext = \"x\"",
        &[r#"5 n.a.kind: "handof" is not known; use "respond", "ask", "condition", "handoff" or "end""#],
    );
    nodes(
        "[n.a]\nkind = \"end\"\nnext = \"a\"\ntxt = \"x\"",
        &[
            "6 n.a.next: belongs to nodes of kind \"respond\" or \"ask\"; remove it",
            "7 n.a.txt: unknown key; did you mean \"text\"?",
        ],
    );
}

#[test]
fn conditions() {
    let rule = |condition: &str, expected: &[&str]| {
        let expected: Vec<String> = expected.iter().map(|line| format!("6 n.a.rules[0]{line}")).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        nodes(
            &format!(
                "[n.a]\nkind = \"condition\"\nrules = [{{ {condition}, next = \"b\" }}]\nelse = \"b\"\n[n.b]\nkind = \"end\""
            ),
            &expected,
        );
    };
    rule(
        r#"value = "metadata.x", equal = 1"#,
        &[
            ".equals: is missing in [workflows.w.nodes.a.rules[0]]; say what is asked of the value: exists, equals, in, matches, \
             less_than, at_most, greater_than or at_least",
            ".equal: unknown key; did you mean \"equals\"?",
        ],
    );
    rule(
        "equals = 1",
        &[
            ".value: is missing in [workflows.w.nodes.a.rules[0]]; name what is asked: \"text\" or \"metadata.KEY\"; or write all, \
             any or not",
            ".equals: unknown key; known here: next, all, any, not, value",
        ],
    );
    rule(
        r#"value = "topic", equals = "x""#,
        &[".value: \"topic\" is no value; write \"text\", for what the user wrote, or \"metadata.KEY\""],
    );
    rule(
        r#"value = "text", matches = "(?=x)""#,
        &[
            ".matches: is no pattern: look-around, including look-ahead and look-behind, is not supported; write a pattern in the \
             syntax of the Rust regex crate, without look-around",
        ],
    );
    rule(r#"value = "text", at_least = "x""#, &[".at_least: is a string; write a number"]);
    rule(r#"value = "text", in = []"#, &[".in: is empty; write a list of strings, numbers or flags"]);
    rule(r#"value = "text", equals = [1]"#, &[".equals: is an array; write a string, a number, true or false"]);
    rule(
        r#"all = [], any = []"#,
        &[": says more than one of all, any, not and value; keep one, and nest the others in it"],
    );
    rule(
        r#"not = { value = "text", exists = true, next = "b" }"#,
        &[".not.next: belongs to a rule, not to a condition inside it; remove it"],
    );
    let deep = format!("{}value = \"text\", exists = true{}", "not = { ".repeat(8), " }".repeat(8));
    rule(&deep, &[&format!("{}: is nested over 8 deep; spread it over several condition nodes", ".not".repeat(8))]);
    nodes(
        "[n.a]\nkind = \"condition\"\nelse = \"b\"\n[n.b]\nkind = \"end\"",
        &[
            "4 n.a.rules: is missing in [workflows.w.nodes.a]; write a list of rules such as { value = \"metadata.KEY\", equals = \
             \"...\", next = \"NODE\" }",
        ],
    );
}
