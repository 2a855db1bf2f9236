//! Which tools there are now, and by which names: those of the configuration and of Rust code, which stay, and those that MCP
//! servers offer, which come and go.
//!
//! Refuses to guess: a name that two servers use is neither's. Invariants: a name leads to one tool; the names of the
//! configuration and of Rust code are never taken from them; `SERVER_TOOL` leads to a server's tool whether or not its plain
//! name is free, so that a call that was written down finds its tool again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use super::schema::Schema;
use super::watched::Watched;
use super::{Tool, ToolSpec};

/// The longest name that model APIs take, and the alphabet is theirs, too:
/// <https://platform.openai.com/docs/api-reference/chat/create#chat-create-tools>.
const NAME_CHARS_MAX: usize = 64;

/// A tool ready to be called.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) tool: Arc<dyn Tool>,
    pub(super) spec: ToolSpec,
    pub(super) schema: Arc<Schema>,
}

/// A tool of an MCP server, under the server's own name for it.
#[derive(Clone)]
pub(super) struct Offer {
    pub(super) tool: Arc<dyn Tool>,
    pub(super) schema: Arc<Schema>,
}

pub(super) struct Catalogue {
    fixed: BTreeMap<String, Entry>,
    offers: RwLock<BTreeMap<String, Vec<Offer>>>,
    view: RwLock<Arc<View>>,
}

/// What can be called at one moment.
#[derive(Default)]
pub(super) struct View {
    entries: BTreeMap<String, Entry>,
    /// The tools' names by the name of their `[tools.*]` table.
    groups: BTreeMap<String, Vec<String>>,
}

impl Catalogue {
    pub(super) fn new(fixed: BTreeMap<String, Entry>) -> Self {
        let view = view(&fixed, &BTreeMap::new());
        Self { fixed, offers: RwLock::default(), view: RwLock::new(Arc::new(view)) }
    }

    /// From now on, these are the tools that a server offers.
    pub(super) fn replace(&self, server: &str, offers: Vec<Offer>) {
        let mut all = self.offers.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(server.to_owned(), offers);
        let view = Arc::new(view(&self.fixed, &all));
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
    }

    pub(super) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl View {
    pub(super) fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The tools behind names as the configuration lists them: of a server all that it offers, each tool once.
    pub(super) fn specs(&self, names: &[String]) -> Vec<ToolSpec> {
        let mut seen = BTreeSet::new();
        let of_group = |name: &String| self.groups.get(name).cloned().unwrap_or_else(|| vec![name.clone()]);
        let names: Vec<String> = names.iter().flat_map(of_group).collect();
        let new = names.iter().filter(|name| seen.insert(name.as_str()));
        new.filter_map(|name| self.entries.get(name)).map(|entry| entry.spec.clone()).collect()
    }
}

fn view(fixed: &BTreeMap<String, Entry>, offers: &BTreeMap<String, Vec<Offer>>) -> View {
    let taken: BTreeSet<&str> = fixed.keys().map(String::as_str).collect();
    let offered = offers.iter().map(|(server, offers)| {
        let names = offers.iter().map(|offer| offer.tool.spec().name).collect();
        (server.as_str(), names)
    });
    let named = names(&taken, &offered.collect());
    let mut view = View { entries: fixed.clone(), groups: BTreeMap::new() };
    for (server, offers) in offers {
        let mut group = Vec::new();
        for (offer, names) in offers.iter().zip(&named[server.as_str()]) {
            let Some((shown, aliases)) = names.split_first() else { continue };
            let entry = entry(offer, shown);
            for alias in aliases {
                view.entries.insert(alias.clone(), entry.clone());
            }
            view.entries.insert(shown.clone(), entry);
            group.push(shown.clone());
        }
        view.groups.insert(server.clone(), group);
    }
    view
}

fn entry(offer: &Offer, name: &str) -> Entry {
    let tool = Arc::new(Watched { name: name.to_owned(), kind: "extension", inner: Arc::clone(&offer.tool) });
    Entry { spec: tool.spec(), tool, schema: Arc::clone(&offer.schema) }
}

/// The names of every server's tools, in the order offered: first the one that models see, then others that lead to the same
/// tool. None for a tool whose every name is another's.
fn names<'s>(taken: &BTreeSet<&str>, offered: &BTreeMap<&'s str, Vec<String>>) -> BTreeMap<&'s str, Vec<Vec<String>>> {
    let mut uses: BTreeMap<String, usize> = BTreeMap::new();
    for tool in offered.values().flatten() {
        *uses.entry(for_models(tool)).or_default() += 1;
    }
    let is_free = |name: &String| !taken.contains(name.as_str());
    let mut given: BTreeSet<String> =
        uses.iter().filter(|(_, uses)| **uses == 1).map(|(name, _)| name.clone()).collect();
    let mut named = BTreeMap::new();
    for (server, tools) in offered {
        let mut of_server = Vec::new();
        for tool in tools {
            let plain = Some(for_models(tool)).filter(|name| uses[name] == 1 && is_free(name));
            let full = for_models(&format!("{server}_{tool}"));
            let full = Some(full).filter(|name| is_free(name) && given.insert(name.clone()));
            of_server.push(plain.into_iter().chain(full).collect());
        }
        named.insert(*server, of_server);
    }
    named
}

/// MCP names may hold dots, slashes and more, and be longer.
fn for_models(name: &str) -> String {
    let fit = |letter: char| if letter.is_ascii_alphanumeric() || letter == '-' { letter } else { '_' };
    name.chars().map(fit).take(NAME_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(taken: &[&str], offered: &[(&'static str, &[&str])], expected: &[(&str, &[&[&str]])]) {
        let offered: BTreeMap<&str, Vec<String>> = offered
            .iter()
            .map(|(server, tools)| (*server, tools.iter().map(|tool| (*tool).to_owned()).collect()))
            .collect();
        let found = names(&taken.iter().copied().collect(), &offered);
        let found: Vec<_> = found.iter().map(|(server, names)| (*server, names.clone())).collect();
        let expected: Vec<(&str, Vec<Vec<String>>)> = expected
            .iter()
            .map(|(server, names)| {
                let names = names.iter().map(|names| names.iter().map(|name| (*name).to_owned()).collect());
                (*server, names.collect())
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn names_and_their_collisions() {
        check(&[], &[("files", &["read"])], &[("files", &[&["read", "files_read"]])]);
        check(
            &["echo"],
            &[("a", &["read", "echo"]), ("b", &["read", "list"])],
            &[("a", &[&["a_read"], &["a_echo"]]), ("b", &[&["b_read"], &["list", "b_list"]])],
        );
        // One server's plain name is another's full one: the plain one keeps it.
        check(&[], &[("a", &["b"]), ("c", &["a_b"])], &[("a", &[&["b"]]), ("c", &[&["a_b", "c_a_b"]])]);
        // A server that calls two tools the same, as far as models can tell.
        check(&[], &[("a", &["x.y", "x/y", "z"])], &[("a", &[&["a_x_y"], &[], &["z", "a_z"]])]);
        check(&["a_read", "read"], &[("a", &["read"])], &[("a", &[&[]])]);
    }

    #[test]
    fn names_fit_model_apis() {
        assert_eq!(for_models("files.read/übersicht v2"), "files_read__bersicht_v2");
        assert_eq!(for_models(&"x".repeat(200)), "x".repeat(64));
    }

    #[test]
    fn two_tools_never_share_a_name() {
        use proptest::prelude::*;
        let tools = || prop::collection::vec("[ab_.]{1,3}", 0..6);
        let servers = (tools(), tools(), tools(), prop::collection::btree_set("[ab_]{1,4}", 0..4));
        proptest!(|((a, b, a_b, taken) in servers)| {
            let offered = BTreeMap::from([("a", a), ("b", b), ("a_b", a_b)]);
            let found = names(&taken.iter().map(String::as_str).collect(), &offered);
            let mut seen = BTreeSet::new();
            for (server, names) in &found {
                prop_assert_eq!(names.len(), offered[server].len());
                for name in names.iter().flatten() {
                    prop_assert!(!taken.contains(name) && seen.insert(name.clone()), "{} twice", name);
                }
            }
        });
    }
}
