//! Who calls the chat API, and what they may see and write.
//!
//! Invariants: keys are compared in constant time, all of them on every request; a bot without keys is open to whoever
//! reaches the port, and then the device id is what shows a conversation to its owner and to nobody else.

use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, header};
use serde_json::{Map, Value};
use subtle::{Choice, ConstantTimeEq as _};

use super::Ingress;
use super::problem::Problem;
use crate::config::{Bot, BotChannel, Secret, WebBot};
use crate::responder::workflow::STATE_KEY;
use crate::store::Conversation;

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// Holds the console token: every bot's conversations.
    Operator,
    /// Holds an API key: a server-side caller, trusted with all devices of the bots that share the key.
    Key,
    /// Holds nothing: the bots without keys, one device's conversations.
    Open,
}

/// A caller and the web bots it may talk to.
#[derive(Debug)]
pub(super) struct Access<'a> {
    pub(super) caller: Caller,
    pub(super) bots: Vec<&'a Bot>,
    /// The key or console token that the caller showed, which is a valid one.
    pub(super) token: Option<&'a str>,
}

impl Ingress {
    /// # Errors
    /// 401 without a valid key, unless some web bot is open and no key was shown; 403 for a page of a foreign origin.
    pub(super) fn access<'a>(&'a self, headers: &'a HeaderMap) -> Result<Access<'a>, Problem> {
        let token = bearer(headers);
        let web = || self.bots.values().filter_map(|bot| as_web(bot).map(|web| (bot, web)));
        let access = match token {
            Some(token) => {
                let operator = self.console_token.as_ref().is_some_and(|secret| equal(token, secret).into());
                let keyed: Vec<&Bot> =
                    web().filter(|(_, web)| matches_any(token, &web.api_keys)).map(|(bot, _)| bot).collect();
                if operator {
                    Access { caller: Caller::Operator, bots: web().map(|(bot, _)| bot).collect(), token: Some(token) }
                } else {
                    Access { caller: Caller::Key, bots: keyed, token: Some(token) }
                }
            }
            None => {
                let open = web().filter(|(_, web)| web.api_keys.is_empty()).map(|(bot, _)| bot).collect();
                Access { caller: Caller::Open, bots: open, token: None }
            }
        };
        if access.bots.is_empty() && access.caller != Caller::Operator {
            return Err(Problem::unauthorized());
        }
        self.of_origin(access, headers)
    }

    /// A browser names the page that makes the request. A page of this server may talk to every bot of its caller, another
    /// site's page only to the bots that list its origin; a site that none of them lists, opened by a person who can reach this
    /// port, gets nothing.
    fn of_origin<'a>(&self, mut access: Access<'a>, headers: &HeaderMap) -> Result<Access<'a>, Problem> {
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(access) };
        // What is not text is no origin that anybody could list.
        let origin = origin.to_str().map_err(|_| foreign_origin())?;
        let own = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let own = own.filter(|host| is_own_name(host, self.public_url.as_deref()));
        if own.is_some_and(|host| origin.split_once("://").is_some_and(|(_, authority)| authority == host)) {
            return Ok(access);
        }
        access.bots.retain(|bot| as_web(bot).is_some_and(|web| web.origins.iter().any(|listed| listed == origin)));
        if access.bots.is_empty() { Err(foreign_origin()) } else { Ok(access) }
    }
}

impl Access<'_> {
    /// The bot a message is for: the one named, or the only one there is.
    pub(super) fn bot(&self, name: Option<&str>) -> Result<(&Bot, &WebBot), Problem> {
        let found = match name {
            Some(name) => self.bots.iter().find(|bot| bot.name == name),
            None if self.bots.len() == 1 => self.bots.first(),
            None => return Err(Problem::field(422, "bot", "must be given, because this key opens several bots.")),
        };
        found
            .and_then(|bot| as_web(bot).map(|web| (*bot, web)))
            .ok_or_else(|| Problem::field(422, "bot", "is not a web bot that this caller may talk to."))
    }

    /// Whether the caller may see the conversation. To a caller without a key, a device's id is what proves it theirs.
    pub(super) fn may_see(&self, conversation: &Conversation, device_id: Option<&str>) -> bool {
        let of_device = device_id.is_none_or(|device| conversation.device_id.as_deref() == Some(device));
        let of_bot = self.bots.iter().any(|bot| bot.name == *conversation.key.bot);
        match self.caller {
            Caller::Operator => of_device,
            Caller::Key => of_bot && of_device,
            Caller::Open => of_bot && of_device && device_id.is_some(),
        }
    }

    /// Whether the caller may write this into a conversation's metadata. The place in the workflow is the turns' own: who
    /// could write it could walk past a node that checks something. An operator may put somebody elsewhere in the graph.
    ///
    /// # Errors
    /// 422 that names the member.
    pub(super) fn check_metadata(&self, metadata: Option<&Map<String, Value>>) -> Result<(), Problem> {
        if self.caller == Caller::Operator || !metadata.is_some_and(|metadata| metadata.contains_key(STATE_KEY)) {
            return Ok(());
        }
        Err(Problem::field(422, &format!("metadata.{STATE_KEY}"), "is written by turns, and with the console token."))
    }
}

pub(super) fn as_web(bot: &Bot) -> Option<&WebBot> {
    match &bot.channel {
        BotChannel::Web(web) => Some(web),
        _ => None,
    }
}

/// Whether the caller shows one of these keys, or the console token.
pub(super) fn has_key(headers: &HeaderMap, console: Option<&Secret>, keys: &[Secret]) -> bool {
    let Some(token) = bearer(headers) else { return false };
    matches_any(token, keys) || console.is_some_and(|secret| equal(token, secret).into())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn equal(token: &str, secret: &Secret) -> Choice {
    token.as_bytes().ct_eq(secret.expose().as_bytes())
}

fn matches_any(token: &str, keys: &[Secret]) -> bool {
    keys.iter().fold(Choice::from(0), |found, key| found | equal(token, key)).into()
}

/// Whether a page under this name can only be of this server. Any other name may be a foreign site's, whose owner lets it lead
/// here, so that their page looks like one of ours (DNS rebinding): only the one that is configured is ours, those that lead to
/// this machine by definition (RFC 6761, section 6.3), and addresses, which nobody can make lead elsewhere.
fn is_own_name(host: &str, public_url: Option<&str>) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let public = || public_url.and_then(|url| reqwest::Url::parse(url).ok());
    name.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || public().is_some_and(|url| url.host_str() == Some(name.as_str()))
}

pub(super) fn foreign_origin() -> Problem {
    Problem::new(403, "foreign-origin", "Pages of this origin may not talk to this bot; see the bot's `origins`.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_can_only_be_this_servers() {
        let public = Some("https://bots.example.com/base");
        let own = ["127.0.0.1:8080", "[::1]:8080", "192.168.1.5", "localhost:8080", "LOCALHOST", "bot.localhost:1"];
        assert!(own.iter().all(|host| is_own_name(host, None)));
        let foreign =
            ["evil.example:8080", "bots.example.com", "localhost.evil.example", "127.0.0.1.nip.io", "", "a b"];
        assert!(foreign.iter().all(|host| !is_own_name(host, None)));
        assert!(is_own_name("bots.example.com:443", public) && is_own_name("Bots.Example.com", public));
        assert!(!is_own_name("evil.example", public));
    }
}
