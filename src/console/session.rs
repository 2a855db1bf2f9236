//! Who looks and who acts: tokens, the cookie that stands for one, and the token that forms carry.
//!
//! Refuses to keep anything: a cookie says who it is for and until when, under a MAC whose key is the token itself, so every
//! process knows it, and a token that is changed ends every session. Invariants: a token never leaves in a cookie or a page;
//! tokens and MACs are compared in constant time.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Serialize;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use crate::config::{Console as Settings, Secret};
use crate::message::Timestamp;

/// A working day, so that nobody has to sign in twice in one.
const LIFETIME_MICROS: i64 = 12 * 60 * 60 * 1_000_000;

pub(super) const COOKIE: &str = "turnwise_console";

/// The longest name that somebody may give, in characters.
pub(super) const NAME_CHARS_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    /// Acts.
    Operator,
    /// Looks.
    Reader,
}

impl Role {
    const ALL: [Self; 2] = [Self::Operator, Self::Reader];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Reader => "reader",
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) role: Role,
    /// As they called themselves.
    pub(super) name: Option<String>,
    /// What a form of theirs has to carry; `None` where no cookie is involved, which a foreign page could make use of.
    pub(super) form_token: Option<String>,
}

impl Who {
    /// For the audit log: which token, and who said to be behind it.
    pub(super) fn actor(&self) -> String {
        match &self.name {
            Some(name) => format!("{} ({name})", self.role.as_str()),
            None => self.role.as_str().to_owned(),
        }
    }

    /// For a conversation's assignee.
    pub(super) fn assignee(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.role.as_str().to_owned())
    }
}

/// The tokens of a deployment.
#[derive(Debug, Clone)]
pub(super) struct Tokens {
    operator: Option<Secret>,
    reader: Option<Secret>,
}

impl Tokens {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { operator: settings.token.clone(), reader: settings.read_token.clone() }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.operator.is_none() && self.reader.is_none()
    }

    /// Whom a token opens for.
    pub(super) fn role_of(&self, token: &str) -> Option<Role> {
        let matches = |secret: &Secret| bool::from(token.as_bytes().ct_eq(secret.expose().as_bytes()));
        let operator = self.operator.as_ref().is_some_and(matches);
        let reader = self.reader.as_ref().is_some_and(matches);
        if operator { Some(Role::Operator) } else { reader.then_some(Role::Reader) }
    }

    /// The cookie of a session that begins now.
    pub(super) fn session(&self, role: Role, name: Option<&str>, now: Timestamp) -> Option<String> {
        let until = now.as_micros() + LIFETIME_MICROS;
        let name = URL_SAFE_NO_PAD.encode(name.unwrap_or_default());
        let said = format!("{}.{until}.{name}", role.as_str());
        Some(format!("{said}.{}", self.mac(role, "session", &said)?))
    }

    /// Who comes with this cookie.
    pub(super) fn read(&self, cookie: &str, now: Timestamp) -> Option<Who> {
        let (said, mac) = cookie.rsplit_once('.')?;
        let mut parts = said.split('.');
        let (role, until, name) = (parts.next()?, parts.next()?, parts.next()?);
        let role = Role::ALL.into_iter().find(|known| known.as_str() == role)?;
        let expected = self.mac(role, "session", said)?;
        let is_ours: bool = expected.as_bytes().ct_eq(mac.as_bytes()).into();
        if !is_ours || parts.next().is_some() || until.parse::<i64>().ok()? <= now.as_micros() {
            return None;
        }
        let name = String::from_utf8(URL_SAFE_NO_PAD.decode(name).ok()?).ok().filter(|name| !name.is_empty());
        Some(Who { role, name, form_token: Some(self.mac(role, "form", said)?) })
    }

    fn mac(&self, role: Role, purpose: &str, said: &str) -> Option<String> {
        let key = match role {
            Role::Operator => self.operator.as_ref(),
            Role::Reader => self.reader.as_ref(),
        }?;
        let mut mac = Hmac::<Sha256>::new_from_slice(key.expose().as_bytes()).ok()?;
        mac.update(format!("turnwise console {purpose} {said}").as_bytes());
        Some(hex::encode(mac.finalize().into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        let secret = |text: &str| Some(Secret::new(text.to_owned()));
        Tokens { operator: secret("may-act"), reader: secret("may-look") }
    }

    #[test]
    fn a_cookie_is_worth_what_its_token_is_and_only_for_its_time() {
        let (tokens, now) = (tokens(), Timestamp::from_micros(1_800_000_000_000_000));
        let cookie = tokens.session(Role::Reader, Some("Ann. \u{e9}"), now).unwrap();
        assert!(!cookie.contains("may-look"));
        let who = tokens.read(&cookie, now).unwrap();
        assert_eq!((who.role, who.name.as_deref()), (Role::Reader, Some("Ann. \u{e9}")));
        assert_eq!(who.actor(), "reader (Ann. \u{e9})");
        let later = Timestamp::from_micros(now.as_micros() + LIFETIME_MICROS);
        assert_eq!(tokens.read(&cookie, later), None, "its time is over");
        for forged in [
            cookie.replace("reader", "operator"),
            format!("{cookie}0"),
            cookie.replacen(".18", ".19", 1),
            "operator".to_owned(),
            String::new(),
        ] {
            assert_eq!(tokens.read(&forged, now), None, "{forged}");
        }
        let changed = Tokens { reader: Some(Secret::new("another".to_owned())), ..tokens.clone() };
        assert_eq!(changed.read(&cookie, now), None, "the token was changed");
        let gone = Tokens { reader: None, ..tokens };
        assert_eq!(gone.read(&cookie, now), None, "the token was taken away");
    }

    #[test]
    fn a_token_opens_what_it_is_for() {
        let tokens = tokens();
        assert_eq!(tokens.role_of("may-act"), Some(Role::Operator));
        assert_eq!(tokens.role_of("may-look"), Some(Role::Reader));
        assert_eq!(tokens.role_of("may-loo"), None);
        assert_eq!(tokens.role_of(""), None);
    }
}
